"""A monitor of somebody else's in one file: it sees what is noised, ends training after the charge, and is named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import DPSGD, FlatClipping, Monitor, NoisedUpdate, PoissonSampling, PrivacyEngine, Session, privatize
from hushgrad.accounting import read_ledger
from hushgrad.errors import ContractChangedError, InvalidArgumentError, MonitorAlarmError
from hushgrad.guards.monitoring.monitor import Report

B, D = 6, 5
NAME = f"{__name__}.NormMonitor"


class NormMonitor(Monitor):
    """Ends training where an update is longer than `limit` times its noise."""

    def __init__(self, limit: float = 10.0) -> None:
        self.limit = limit
        self.seen: list[NoisedUpdate] = []
        self.longest = 0.0

    def see(self, update: NoisedUpdate) -> None:
        self.seen.append(update)
        values = sum(gradient.numel() for gradient in update.gradients.values())
        length = sum(float(gradient.double().square().sum()) for gradient in update.gradients.values()) ** 0.5
        expected = update.mechanism.noise_std / update.mechanism.divisor * values**0.5
        self.longest = max(self.longest, length / expected)
        if length > self.limit * expected:
            raise MonitorAlarmError("the update is too long", where=self.name, cure="Look at the learning rate")

    def report(self) -> Report | None:
        return {"steps": len(self.seen), "longest": round(self.longest, 3)}


class Writes(Monitor):
    """A planted bug: rescales what the optimizer is about to take."""

    def see(self, update: NoisedUpdate) -> None:
        for gradient in update.gradients.values():
            gradient.mul_(2.0)


class BadReport(Monitor):
    """A planted bug: a report that no ledger takes."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def see(self, update: NoisedUpdate) -> None:
        pass

    def report(self) -> Any:
        if self.value is None:
            raise ZeroDivisionError
        return {"tensor": self.value}


def claim(sigma: float = 1.0) -> DPSGD:
    return DPSGD(
        noise_multiplier=sigma, clipping=FlatClipping(0.7), sampling=PoissonSampling(0.1), expected_batch_size=B
    )


def session_with(*monitors: Monitor, ledger: Path | None = None) -> tuple[Session, nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return privatize(model, optimizer, claim(), ledger=ledger, monitors=list(monitors)), model, optimizer


def step(session: Session, model: nn.Module, optimizer: torch.optim.Optimizer, size: int = B) -> None:
    session.backward(model(torch.randn(size, D)).square().sum(1) if size else torch.zeros(0))
    optimizer.step()


def test_what_a_monitor_found_is_in_the_ledger_and_it_is_named_in_the_guarantee(tmp_path: Path) -> None:
    monitor = NormMonitor()
    session, model, optimizer = session_with(monitor, ledger=tmp_path / "ledger.jsonl")
    for size in (B, 0, B - 1):  # an empty draw is a step like any other
        step(session, model, optimizer, size)
    assert NAME in str(session.guarantee(1e-5))
    session.close()
    view = read_ledger(tmp_path / "ledger.jsonl")
    notes = {note.about: note.values for note in view.notes}
    assert view.steps == 3
    assert notes[f"monitor {NAME}"] == monitor.report()
    assert notes[f"monitor {NAME}"]["steps"] == 3
    assert any(NAME in condition.sentence for condition in view.conditions)
    assert [update.number for update in monitor.seen] == [0, 1, 2]


def test_a_monitor_sees_the_noised_update_and_public_numbers_only() -> None:
    """Guarantee: a monitor that is handed in sees no sum without noise, and is named in the guarantee as somebody
    else's.
    """
    assert {field.name for field in fields(NoisedUpdate)} == {"number", "mechanism", "gradients", "noise_std"}
    monitor = NormMonitor()
    session, model, optimizer = session_with(monitor)
    taken: list[dict[str, Tensor]] = []
    optimizer.register_step_pre_hook(
        lambda *_: taken.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    )
    session.backward(torch.zeros(0))  # noise alone: a sum without noise would be 0
    optimizer.step()
    (update,) = monitor.seen
    assert update.mechanism is session.mechanism
    assert update.noise_std == dict.fromkeys(update.gradients, session.mechanism.noise_std)
    assert update.gradients.keys() == taken[0].keys() == dict(model.named_parameters()).keys()
    for name, gradient in update.gradients.items():
        assert torch.equal(gradient, taken[0][name])
        assert bool(gradient.any())
    with pytest.raises(TypeError):
        update.gradients["0.weight"] = torch.zeros(1)  # type: ignore[index]
    assert any(NAME in condition.sentence for condition in session.guarantee(1e-5).conditions)
    session.close()


def test_an_alarm_ends_the_step_after_its_charge_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    session, model, optimizer = session_with(NormMonitor(limit=1e-6), ledger=tmp_path / "ledger.jsonl")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(MonitorAlarmError, match=f"DP410 {NAME}: the update is too long. Look at"):
        step(session, model, optimizer)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not session.last_step_updated
    view = read_ledger(tmp_path / "ledger.jsonl")  # as a reader beside the run would
    assert view.steps == 1
    assert {note.about: note.values for note in view.notes}[f"monitor {NAME}"]["steps"] == 1
    session.close()


def test_a_monitor_that_writes_to_the_update_ends_the_step() -> None:
    session, model, optimizer = session_with(Writes())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ContractChangedError, match=r"Writes: .*gradient\.clone\(\)"):
        step(session, model, optimizer)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    session.close()


@pytest.mark.parametrize("value", [None, float("nan"), True, torch.zeros(1)])
def test_a_report_that_cannot_be_kept_is_said_to_have_failed(tmp_path: Path, value: Any) -> None:
    session, model, optimizer = session_with(BadReport(value), ledger=tmp_path / "ledger.jsonl")
    step(session, model, optimizer)
    session.close()
    notes = {note.about: note.values for note in read_ledger(tmp_path / "ledger.jsonl").notes}
    assert set(notes[f"monitor {__name__}.BadReport"]) == {"failed"}


@pytest.mark.parametrize("wrong", [NormMonitor, [NormMonitor], ["monitor"], NormMonitor()])
def test_what_is_no_list_of_monitors_is_refused(wrong: Any) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(InvalidArgumentError, match="monitor"):
        privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), claim(), monitors=wrong)
    privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), claim()).close()  # nothing was kept of the attempt


def test_an_engine_hands_its_monitors_on_and_its_training_passes_verification() -> None:
    torch.manual_seed(0)
    monitor = NormMonitor()
    data = TensorDataset(torch.randn(200, D), torch.randint(2, (200,)))
    model = nn.Linear(D, 2)
    engine = PrivacyEngine(monitors=[monitor])
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=20),
        noise_multiplier=1.0,
        max_grad_norm=0.5,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    assert len(monitor.seen) == 10
    assert NAME in str(engine.guarantee(1e-5))
    verdict = hushgrad.verify(model, loader, nn.CrossEntropyLoss(), engine, resolution=0.05)
    assert verdict.passed, str(verdict)
    engine.session.close()


def test_a_monitor_that_puts_another_update_in_its_place_ends_the_step() -> None:
    class Replaces(Monitor):
        def see(self, update: NoisedUpdate) -> None:
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)

    session, model, optimizer = session_with(Replaces())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ContractChangedError, match="Replaces: this monitor changed the update"):
        step(session, model, optimizer)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    session.close()


@pytest.mark.parametrize("name", ["", 5, None, "two\nlines", "\x1b[31m"])
def test_a_name_that_a_guarantee_cannot_print_is_refused(name: Any) -> None:
    class Named(NormMonitor):
        @property
        def name(self) -> str:
            return name  # type: ignore[no-any-return]

    with pytest.raises(InvalidArgumentError, match="the name of the monitor Named"):
        session_with(Named())
