"""Accounts of people who come back: what was trained before and is not in this ε."""

from __future__ import annotations

import copy
import io
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from silent_programs import Kind, Measured, Program
from torch import nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))

UNCOUNTED, NO_PATH, CLOSED = "uncounted steps", "no ledger path", "closed session"


def trained(
    model: nn.Module, ledger: Path | None, data: Any = X, close: bool = True, size: int = 8, **options: Any
) -> PrivacyEngine:
    """Train one pass of two steps."""
    engine = PrivacyEngine(ledger=ledger)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(list(data), batch_size=size),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        **{"poisson_sampling": False, **options},
    )
    for x in loader:
        engine.session.backward(model(x).square().sum(1))
        optimizer.step()
    if close:
        engine.session.close()
    return engine


def told(engine: PrivacyEngine) -> frozenset[str]:
    return frozenset(condition.name for condition in engine.session.guarantee(1e-5, "rdp").conditions)


def account(name: str, run: Callable[[Path], PrivacyEngine], *trust: str, is_clean: bool = False) -> Program:
    """A story in a folder of its own. A leaky one must be refused or told by a condition; a clean one has none."""

    def measure(way: str) -> Measured:
        with tempfile.TemporaryDirectory() as folder:
            conditions = told(run(Path(folder)))
        return Measured(
            float(bool(conditions)) * math.inf if is_clean and conditions else (0.0 if is_clean else math.inf),
            conditions,
        )

    return Program(name, measure, ways=("session",), trust=trust, is_clean=is_clean)


def net() -> nn.Module:
    return nn.Linear(4, 3)


def without_path(folder: Path) -> PrivacyEngine:
    return trained(net(), None)


def resumed_without_path(folder: Path) -> PrivacyEngine:
    first = net()
    trained(first, folder / "ledger")
    torch.save(first.state_dict(), folder / "weights")
    second = net()
    second.load_state_dict(torch.load(folder / "weights"))
    return trained(second, None)


def resumed_at_another_path(folder: Path) -> PrivacyEngine:
    first = net()
    trained(first, folder / "ledger")
    second = net()
    second.load_state_dict(first.state_dict())
    return trained(second, folder / "other")


def from_a_file_at_another_path(folder: Path) -> PrivacyEngine:
    first = net()
    trained(first, folder / "ledger")
    torch.save(first.state_dict(), folder / "weights")
    second = net()
    second.load_state_dict(torch.load(folder / "weights"))
    return trained(second, folder / "other")


def same_model_another_ledger(folder: Path) -> PrivacyEngine:
    model = net()
    trained(model, folder / "ledger")
    return trained(model, folder / "other")


def deep_copied(folder: Path) -> PrivacyEngine:
    model = net()
    trained(model, folder / "ledger")
    return trained(copy.deepcopy(model), folder / "other")


def pickled(folder: Path) -> PrivacyEngine:
    model, buffer = net(), io.BytesIO()
    trained(model, folder / "ledger")
    torch.save(model, buffer)
    buffer.seek(0)
    return trained(torch.load(buffer, weights_only=False), folder / "other")


def copied_while_open(folder: Path) -> PrivacyEngine:
    model = net()
    engine = trained(model, folder / "ledger", close=False)
    other = copy.deepcopy(model.state_dict())
    engine.session.close()
    second = net()
    second.load_state_dict(other)
    return trained(second, folder / "other")


def parts_moved(folder: Path) -> PrivacyEngine:
    model = net()
    trained(model, folder / "ledger")
    return trained(nn.Sequential(model, nn.Tanh()), folder / "other")


def copied_by_hand(folder: Path) -> PrivacyEngine:
    first, second = net(), net()
    trained(first, folder / "ledger")
    with torch.no_grad():
        for new, old in zip(second.parameters(), first.parameters(), strict=True):
            new.copy_(old)
    return trained(second, folder / "other")


def two_copies_of_one_ledger(folder: Path) -> PrivacyEngine:
    trained(net(), folder / "ledger")
    shutil.copy(folder / "ledger", folder / "copy")
    trained(net(), folder / "ledger")
    return trained(net(), folder / "copy")


def rolled_back(folder: Path) -> PrivacyEngine:
    trained(net(), folder / "ledger")
    shutil.copy(folder / "ledger", folder / "copy")
    trained(net(), folder / "ledger")
    shutil.copy(folder / "copy", folder / "ledger")
    return trained(net(), folder / "ledger")


def trained_after_close(folder: Path) -> PrivacyEngine:
    model = net()
    engine = trained(model, folder / "ledger")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    return engine


def asked_of_a_closed_session(folder: Path) -> PrivacyEngine:
    return trained(net(), folder / "ledger")


def fresh(folder: Path) -> PrivacyEngine:
    return trained(net(), folder / "ledger", close=False)


def continued(folder: Path) -> PrivacyEngine:
    model = net()
    trained(model, folder / "ledger")
    return trained(model, folder / "ledger", close=False)


def resumed(folder: Path) -> PrivacyEngine:
    first = net()
    trained(first, folder / "ledger")
    second = net()
    second.load_state_dict(first.state_dict())
    return trained(second, folder / "ledger", close=False)


def copied_before_training(folder: Path) -> PrivacyEngine:
    return trained(copy.deepcopy(net()), folder / "ledger", close=False)


def another_model(folder: Path) -> PrivacyEngine:
    trained(net(), folder / "ledger")
    return trained(net(), folder / "other", close=False)


def backed_up(folder: Path) -> PrivacyEngine:
    trained(net(), folder / "ledger")
    shutil.copy(folder / "ledger", folder / "copy")
    return trained(net(), folder / "ledger", close=False)


def initial_weights_loaded(folder: Path) -> PrivacyEngine:
    first, second = net(), net()
    second.load_state_dict(first.state_dict())
    return trained(second, folder / "ledger", close=False)


def another_size_without_a_phase(folder: Path) -> PrivacyEngine:
    trained(net(), folder / "ledger")
    return trained(net(), folder / "ledger", size=4)


def a_phase_again(folder: Path) -> PrivacyEngine:
    for phase in ("one", "two", "one"):
        engine = trained(net(), folder / "ledger", phase=phase)
    return engine


def chosen_after_the_first(folder: Path) -> PrivacyEngine:
    model = net()
    trained(model, folder / "ledger", phase="one")
    with torch.no_grad():
        size = 4 if model(X).square().sum() > 1 else 8
    return trained(model, folder / "ledger", size=size, phase="two")


def a_phase_of_its_own(folder: Path) -> PrivacyEngine:
    model = net()
    trained(model, folder / "ledger", phase="one")
    return trained(model, folder / "ledger", close=False, phase="one")


PROGRAMS: tuple[Program, ...] = (
    account("a ledger in memory", without_path, NO_PATH),
    account("weights resumed without a ledger", resumed_without_path, NO_PATH),
    account("load_state_dict, another ledger", resumed_at_another_path, UNCOUNTED),
    account("weights from a file, another ledger", from_a_file_at_another_path, UNCOUNTED),
    account("the same model, another ledger", same_model_another_ledger, UNCOUNTED),
    account("deepcopy, another ledger", deep_copied, UNCOUNTED),
    account("a pickled model, another ledger", pickled, UNCOUNTED),
    account("a state_dict kept over close(), another ledger", copied_while_open, UNCOUNTED),
    account("the model as a part of another, another ledger", parts_moved, UNCOUNTED),
    account("parameters copied by hand, another ledger", copied_by_hand, UNCOUNTED),
    account("two copies of one ledger continued", two_copies_of_one_ledger),
    account("a ledger rolled back to a copy", rolled_back),
    account("ordinary training after close()", trained_after_close, CLOSED),
    account("asked of a closed session", asked_of_a_closed_session, CLOSED),
    account("another batch size, no phase", another_size_without_a_phase),
    account("a phase that has ended", a_phase_again),
    account("a phase chosen after the first", chosen_after_the_first, "phases fixed beforehand"),
    account("a phase that goes on", a_phase_of_its_own, is_clean=True),
    account("a new run", fresh, is_clean=True),
    account("the same model, the same ledger", continued, is_clean=True),
    account("load_state_dict, the same ledger", resumed, is_clean=True),
    account("deepcopy before training", copied_before_training, is_clean=True),
    account("another model, another ledger", another_model, is_clean=True),
    account("a copy of the ledger that nobody continues", backed_up, is_clean=True),
    account("initial weights loaded", initial_weights_loaded, is_clean=True),
)

KIND = Kind(
    "accounts",
    "earlier steps of this model, by object, by copy and by its weights; copies of a ledger; phases by their names",
    "set-up; every guarantee",
    "earlier runs on other machines; `no ledger path`, `uncounted steps`, `closed session`, `phases fixed beforehand` "
    "are stated",
    PROGRAMS,
)
