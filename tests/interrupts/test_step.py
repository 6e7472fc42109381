"""An interrupt at a named point of a step: no update comes without its noise, and none above its charge."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from points import AlarmError, interrupted_at
from torch import Tensor, nn

import hushgrad.session.update
from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.ledger import ledger as ledger_module
from hushgrad.accounting.ledger import view as view_module
from hushgrad.accounting.ledger.contract import DECLARED, OPERATING_SYSTEM, Contract
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.guards.monitoring.noise import NoiseMonitor
from hushgrad.noise import gaussian
from hushgrad.randomness import KeyStream

MECHANISM = DPSGD(
    noise_multiplier=1e3, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=2
)
STD = 500.0  # of the noise on an update, σC/B


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian.backend(), "worth_a_thread", 1)
    torch.set_num_threads(2)


def attached(**options: Any) -> tuple[nn.Module, Any, Session]:
    model = nn.Linear(64, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return model, optimizer, privatize(model, optimizer, MECHANISM, key=KeyStream.fixed_for_tests(3), **options)


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


PACKAGE = str(Path(hushgrad.__file__).parent) + os.sep


def is_of_the_step(file: str) -> bool:
    """Whether a file is of the library itself: torch may lie below a folder of the same name."""
    return file.startswith(PACKAGE)


def batches() -> Iterator[Tensor]:
    while True:
        yield torch.randn(3, 64)


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_moment_of_a_step_leaves_no_update_without_noise_and_none_above_its_charge(
    every: int,
) -> None:
    """Each moment of the step in the library's own code, one after another, in one session that goes on after each.

    The weight has 2,560 values: the level of a bare update is 0, that of a true one within 20% (14 standard errors).
    """
    model, optimizer, session = attached()
    x, point, updates = batches(), 1, 0
    while True:
        session.backward(model(next(x)).square().sum(1))
        before, charged = values(model), session.steps
        outcome = interrupted_at(point, optimizer.step, is_of_the_step)
        if not outcome.rang:
            break
        assert isinstance(outcome.error, AlarmError), f"at moment {point}: {outcome.error!r}"
        moved = [after - former for after, former in zip(values(model), before, strict=True)]
        changes = [change for change in moved if bool(change.any())]
        assert all(0.5 < float(change.std()) / STD < 1.5 for change in changes), f"at moment {point}"
        updates += bool(changes)
        total = sum(count for _, count in session.charged)
        assert charged <= session.steps <= charged + 1
        assert updates <= session.steps <= total
        session.discard()
        point += every
    assert outcome.error is None
    assert session.last_step_updated
    assert torch.is_grad_enabled()
    assert point > 300
    assert session.noise_monitor.verdict == "as charged"


def test_an_interrupt_at_any_moment_of_a_charge_takes_no_step_away() -> None:
    """What was charged before must not be lost with the charge that is interrupted."""
    contract = Contract(sampling=DECLARED, noise_source=OPERATING_SYSTEM)
    event = PoissonSampled(0.5, 1.0)
    files = {ledger_module.__file__, view_module.__file__}
    for point in range(1, 1000):
        ledger = Ledger(contract=contract)
        ledger.charge(event, 1000)
        outcome = interrupted_at(point, lambda: ledger.charge(event), lambda file: file in files)  # noqa: B023
        assert sum(count for _, count in ledger.events()) >= 1000
        assert ledger.steps >= 1000
        if not outcome.rang:
            break
        assert isinstance(outcome.error, AlarmError)
    assert ledger.events() == [(event, 1001)]
    assert point > 5


def test_a_timeout_of_a_handler_is_not_taken_for_a_failing_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TimeoutError, which handlers of alarms raise, is an OSError. The charge it came upon may be on disk or not."""

    class LateError(TimeoutError):
        pass

    def late(descriptor: int) -> None:
        raise LateError("the handler's own words")

    model, optimizer, session = attached(ledger=tmp_path / "ledger")
    session.backward(torch.zeros(0))
    before = values(model)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", late)
        with pytest.raises(LateError, match="own words"):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, values(model), strict=True))
    session.close()
    assert read_ledger(tmp_path / "ledger").steps <= session.steps == 1


def test_an_interrupted_look_at_the_noise_leaves_no_false_alarm() -> None:
    """Values that were counted without their squares would look like noise that is too small."""
    monitor = NoiseMonitor()
    sums = [torch.zeros(64)]
    generator = torch.Generator().manual_seed(1)

    def look() -> None:
        noise = torch.randn(64, generator=generator)
        monitor.after(monitor.before(sums), [noise / noise.square().mean().sqrt()], 1.0, 1.0)

    for point in range(1, 1000):
        if not interrupted_at(point, look, lambda file: file.endswith("monitoring/noise.py")).rang:
            break
    assert point > 5
    assert abs(monitor.ratio - 1) < 1e-4  # that of each look


def test_an_interrupt_as_an_update_is_handed_out_leaves_gradients_switched_on() -> None:
    parameters = {"a": nn.Parameter(torch.zeros(3)), "b": nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))}
    update = hushgrad.session.update.Update(parameters, MECHANISM, KeyStream.fixed_for_tests(1), None)
    for point in range(1, 10_000):
        outcome = interrupted_at(point, partial(update.write, MECHANISM, 0), is_of_writing)
        assert torch.is_grad_enabled()
        if not outcome.rang:
            break
        assert isinstance(outcome.error, AlarmError)
    assert outcome.error is None
    assert all(parameter.grad is not None and not parameter.grad.requires_grad for parameter in parameters.values())


def is_of_writing(file: str) -> bool:
    return file.endswith(
        (
            "hushgrad/session/update.py",
            "hushgrad/mechanism/mechanism.py",
            "hushgrad/mechanism/gaussian.py",
            "torch/_utils.py",
            "torch/utils/_contextlib.py",
            "grad_mode.py",
        )
    )


LIMITED = """
import sys; sys.path.insert(0, sys.argv[1])
from functools import partial
import torch
from points import AlarmError, alarms, pending_before
from torch import nn
from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize
from hushgrad.noise import gaussian, threads

lost = []
sys.unraisablehook = lambda what: lost.append(what.exc_value)
gaussian.backend().worth_a_thread = 1
torch.set_num_threads(2)
real = threads._openmp()
if real is None:
    print("no OpenMP"); sys.exit()
model = nn.Linear(64, 40)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
mechanism = DPSGD(
    noise_multiplier=1e3, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=2
)
session = privatize(model, optimizer, mechanism)
heard = 0
with alarms():
    for is_interrupted in (True, False, True, False):
        threads._openmp = lambda: partial(pending_before, real) if is_interrupted else real
        before = model.weight.detach().clone()
        session.backward(torch.zeros(0))
        try:
            optimizer.step()
        except AlarmError:
            heard += 1
        level = float((model.weight.detach() - before).std()) / 500
        assert level == 0 if is_interrupted else 0.5 < level < 1.5, level
print(heard, session.steps, len(lost), session.noise_monitor.verdict)
"""


def test_where_openmp_gives_one_thread_of_two_no_interrupted_update_is_released(tmp_path: Path) -> None:
    """The signal has come as the only thread of OpenMP calls its share, where it was lost with all of the noise."""
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(Path(__file__).parent)],
        env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    if result.stdout.strip() == "no OpenMP":
        pytest.skip("torch runs on an OpenMP runtime without GOMP_parallel here")
    assert result.stdout.split(maxsplit=3) == ["2", "4", "0", "as charged\n"]
