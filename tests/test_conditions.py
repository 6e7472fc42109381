"""What a run takes on trust is said by name: by its guarantee, in its ledger and in its report; by others it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, ClipRule, FlatClipping, PoissonSampling, PrivacyEngine, privatize
from hushgrad.accounting import conditions
from hushgrad.accounting.guarantee import guarantee
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import TakenOnTrustError
from hushgrad.gradients.contribution import Plan
from hushgrad.session.session import Session
from hushgrad.study.report.assumptions import UNKNOWN, assumptions_of
from hushgrad.study.report.run_files import RunFiles

DATA = TensorDataset(torch.arange(40.0).reshape(20, 2) / 40, torch.arange(20) % 2)


@dataclass(frozen=True)
class OwnClipping(ClipRule):
    """A stranger's clip rule."""

    sensitivity: float

    def limits(self, count: int) -> tuple[float, ...]:
        return (self.sensitivity,) * count

    def factors(self, norms_GB: Tensor) -> Tensor:
        return (self.sensitivity / norms_GB).clamp(max=1)

    def scaled(self, factor: float) -> OwnClipping:
        return OwnClipping(self.sensitivity * factor)

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return FlatClipping(self.sensitivity).reference(per_example)


class OwnPlan(Plan):
    """A stranger's plan."""


@dataclass(frozen=True)
class OwnSampling(PoissonSampling):
    """A stranger's sampling."""


@dataclass(frozen=True, kw_only=True)
class OwnMechanism(DPSGD):
    """A stranger's mechanism."""


def run(
    ledger: Path | None,
    *,
    loss: str = "per example",
    batch_size: int = 10,
    discards: int = 0,
    test_key: int | None = None,
    strict: bool = False,
    call: Callable[[nn.Module, Tensor], Tensor] = lambda model, inputs: model(inputs),
    **settings: Any,
) -> PrivacyEngine:
    """Run two logical batches through the engine; the session stays open."""
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(ledger=ledger, test_key=test_key, strict=strict)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(DATA, batch_size=batch_size),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=settings.pop("poisson_sampling", False),
        **settings,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss()) if loss == "per example" else F.cross_entropy
    for _ in range(discards):
        next(iter(loader))
        engine.session.discard()
    for inputs, targets in loader:
        result = criterion(call(model, inputs), targets)
        if loss == "unread":
            result = torch.linalg.matrix_exp(torch.diag_embed(call(model, inputs))).mean()
        result.backward()
        optimizer.step()
    return engine


def own_session(ledger: Path | None, plan: Plan | None = None, **parts: Any) -> Session:
    """Take one step in a loop without a loader."""
    model = nn.Linear(2, 2)
    kind = parts.pop("mechanism", DPSGD)
    mechanism = kind(
        noise_multiplier=1.0,
        clipping=parts.get("clipping", FlatClipping(1.0)),
        sampling=parts.get("sampling", PoissonSampling(0.1)),
        expected_batch_size=2,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism, ledger=ledger, plan=plan)
    session.backward(model(torch.ones(2, 2)).square().sum(1))
    optimizer.step()
    return session


def names(source: PrivacyEngine | Session) -> list[str]:
    session = source.session if isinstance(source, PrivacyEngine) else source
    return [condition.name for condition in session.guarantee(1e-5, "rdp").conditions]


def test_a_run_of_the_recommended_kind_takes_nothing_on_trust(tmp_path: Path) -> None:
    assert names(run(tmp_path / "ledger")) == []


RUNS: dict[str, tuple[str, Callable[[Path], PrivacyEngine | Session]]] = {
    "own loss": ("own scalar loss", lambda path: run(path, loss="own")),
    "unread": ("own scalar loss, not read", lambda path: run(path, loss="unread")),
    "parts": (
        "outside of the model's call",
        lambda path: run(path, call=lambda model, x: model[2](model[1](model[0](x)))),
    ),
    "one record": ("never examined", lambda path: run(path, batch_size=1)),
    "discarded": ("discarded batches", lambda path: run(path, discards=2, poisson_sampling=True)),
    "clip rule": ("third-party clip rule", lambda path: own_session(path, clipping=OwnClipping(1.0))),
    "plan": ("third-party plan of norms", lambda path: own_session(path, plan=OwnPlan())),
    "sampling": ("third-party sampling", lambda path: own_session(path, sampling=OwnSampling(0.1))),
    "mechanism": ("third-party mechanism", lambda path: own_session(path, mechanism=OwnMechanism)),
    "declared": ("declared sampling", own_session),
    "no loader": ("losses without a loader", own_session),
    "fixed key": ("fixed key", lambda path: run(path, test_key=1)),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_condition_is_told_by_the_guarantee_the_ledger_and_the_report(kind: str, tmp_path: Path) -> None:
    name, make = RUNS[kind]
    made = make(tmp_path / "ledger")
    assert name in names(made)
    session = made.session if isinstance(made, PrivacyEngine) else made
    live = session.guarantee(1e-5, "rdp")
    session.close()
    view = read_ledger(tmp_path / "ledger")
    read = guarantee(view.events, 1e-5, "rdp", contract=view.contract, conditions=view.conditions)
    assert read.conditions == live.conditions
    assert str(read) == str(live)
    if name not in ("declared sampling", "fixed key"):
        files = RunFiles(tmp_path, None, {}, [], view, None)
        rows = assumptions_of(files, contradictions=0)
        (row,) = [row for row in rows if row["assumption"].endswith(f": {name}")]
        assert row["status"] == UNKNOWN


def test_a_ledger_in_memory_is_a_condition_and_a_durable_one_is_not(tmp_path: Path) -> None:
    assert names(run(None)) == ["no ledger path"]
    assert "is not counted" in str(run(None).guarantee(1e-5))


def test_a_closed_session_is_a_condition_of_what_is_asked_later(tmp_path: Path) -> None:
    engine = run(tmp_path / "ledger")
    engine.session.close()
    assert names(engine) == ["closed session"]
    assert read_ledger(tmp_path / "ledger").conditions == ()


def test_steps_in_other_ledgers_are_a_condition_that_the_ledger_keeps(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    for name in ("first", "second"):
        mechanism = DPSGD(
            noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=2
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        session = privatize(model, optimizer, mechanism, ledger=tmp_path / name)
        session.backward(model(torch.ones(2, 2)).square().sum(1))
        optimizer.step()
        session.close()
    assert conditions.UNCOUNTED not in [part.name for part in read_ledger(tmp_path / "first").conditions]
    assert conditions.uncounted(1) in read_ledger(tmp_path / "second").conditions


def test_a_condition_is_noted_once_also_over_sessions_and_steps(tmp_path: Path) -> None:
    for _ in range(2):
        engine = run(tmp_path / "ledger", loss="own")
        engine.session.close()
    noted = [note for note in read_ledger(tmp_path / "ledger").notes if note.about == conditions.NOTED_AS]
    assert len(noted) == 1


def test_a_logical_batch_that_is_open_when_the_session_is_closed_counts_as_discarded(tmp_path: Path) -> None:
    for steps, path in enumerate((tmp_path / "begun", tmp_path / "ended")):
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = PrivacyEngine(test_key=1, ledger=path)
        _, _, loader = engine.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=DataLoader(DATA, batch_size=10),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )
        inputs, targets = next(iter(loader))
        F.cross_entropy(model(inputs), targets).backward()
        if steps:
            optimizer.step()
        engine.session.close()
        engine.session.close()
        assert (conditions.discarded(1) in engine.guarantee(1e-5).conditions) == (not steps)
        assert (conditions.discarded(1) in read_ledger(path).conditions) == (not steps)


def test_discards_of_all_sessions_are_added_up(tmp_path: Path) -> None:
    for _ in range(2):
        engine = run(tmp_path / "ledger", discards=2, poisson_sampling=True)
        engine.session.close()
    assert conditions.discarded(4) in read_ledger(tmp_path / "ledger").conditions


def test_padding_whose_place_could_not_be_looked_at_is_a_condition(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_physical_batch_size": 8, "constant_shapes": True, "poisson_sampling": True}
    looked_at = run(tmp_path / "looked at", test_key=1, **settings)
    assert "order of rows" not in names(looked_at)
    computed = run(tmp_path / "computed", test_key=1, call=lambda model, inputs: model(inputs * 2), **settings)
    assert "order of rows" in names(computed)


@pytest.mark.parametrize("constant_shapes", [False, True])
@pytest.mark.parametrize("is_narrow", [False, True])
def test_sixteen_bits_in_batches_of_drawn_sizes_are_a_condition(
    tmp_path: Path, constant_shapes: bool, is_narrow: bool
) -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(ledger=tmp_path / "ledger")
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(DATA, batch_size=10),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        max_physical_batch_size=16,
        constant_shapes=constant_shapes,
    )
    for inputs, targets in loader:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_narrow):
            output = model(inputs)
        engine.session.backward(F.cross_entropy(output.float(), targets, reduction="none"))
        optimizer.step()
    assert ("rounded together" in names(engine)) == (is_narrow and not constant_shapes)
    engine.session.close()
    assert (conditions.ROUNDED_TOGETHER in read_ledger(tmp_path / "ledger").conditions) == (
        is_narrow and not constant_shapes
    )


def test_what_the_probe_could_not_examine_is_a_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = run(tmp_path / "ledger")
    engine.session._parts.probe._on_trust.note(["a part: its random numbers could not be silenced"])
    assert names(engine) == ["not examined"]
    assert "not examined: a part: its random numbers" in str(engine.guarantee(1e-5)).lower()


@pytest.mark.parametrize("kind", ["own", "unread"])
def test_under_strict_what_would_be_taken_on_trust_of_a_loss_is_refused_before_anything_is_released(kind: str) -> None:
    with pytest.raises(TakenOnTrustError, match="one loss per example") as caught:
        run(None, loss=kind, strict=True)
    assert caught.value.where.startswith("own scalar loss")


def test_under_strict_a_part_of_the_model_called_by_itself_is_refused_and_the_recommended_loop_trains() -> None:
    with pytest.raises(TakenOnTrustError, match="outside of the model's call"):
        run(None, call=lambda model, x: model[2](model[1](model[0](x))), strict=True)
    assert names(run(None, strict=True)) == ["no ledger path"]


def test_a_loss_that_is_not_read_is_said_with_its_operator_and_the_line_of_its_backward() -> None:
    made = run(None, loss="unread").session.guarantee(1e-5, "rdp")
    (condition,) = [condition for condition in made.conditions if "not read" in condition.name]
    assert "DiagEmbed is not known" in condition.sentence
    assert "test_conditions.py, line " in condition.sentence
