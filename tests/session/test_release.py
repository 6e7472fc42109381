"""The end of a logical batch: the charge first, then the noise, and nothing carried over."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from private_loops import NO_NOISE, NOISY, Training, attach, losses, same, values
from torch import Tensor

import hushgrad.mechanism.gaussian
from hushgrad import Monitor, NoisedUpdate
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import BudgetExhaustedError, LedgerError, MonitorAlarmError, ProtocolError
from hushgrad.session.spending import Spending


def test_an_interrupt_between_a_logical_batch_and_its_release_carries_no_sum_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Examples of the interrupted batch in the next update would double what one record may change."""
    interrupted, calm = Training(physical=None), Training(physical=None)
    calm.model.load_state_dict(interrupted.model.state_dict())
    calm.loader.dataset.tensors = interrupted.loader.dataset.tensors

    def release(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hushgrad.session.session.release", release)
        items = iter(interrupted.loader)
        with pytest.raises(KeyboardInterrupt):
            interrupted.work(next(items))
    interrupted.work(next(iter(interrupted.loader)))
    calm.work(next(iter(calm.loader)))
    assert interrupted.is_as(calm.values())


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_the_charge_is_on_disk_before_noise_is_drawn_and_a_failure_there_updates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    """Guarantee: an update happens only after its charge is recorded."""
    model, optimizer, session = attach(NOISY, ledger=tmp_path / "ledger")
    before = values(model)
    drawn = 0
    on_disk = []
    real = hushgrad.mechanism.gaussian.noisy_updates

    def interrupted(*args: Any, **options: Any) -> list[Tensor]:
        nonlocal drawn
        drawn += 1
        on_disk.append(read_ledger(tmp_path / "ledger").steps)
        if drawn == 1:
            raise failure
        return real(*args, **options)

    monkeypatch.setattr(hushgrad.mechanism.gaussian, "noisy_updates", interrupted)
    session.backward(losses(model, torch.randn(4, 3).double()))
    with pytest.raises(failure):
        optimizer.step()
    assert on_disk == [1]
    assert same(before, values(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not session.last_step_updated
    with pytest.raises(ProtocolError):
        optimizer.step()
    session.backward(torch.zeros(0))
    optimizer.step()
    assert session.steps == 2


def test_an_interrupt_between_the_end_of_a_logical_batch_and_its_release_carries_no_sum_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Examples of the interrupted batch in the next update would double what one record may change."""
    x = torch.randn(16, 3).double()
    model, optimizer, session = attach(NO_NOISE)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hushgrad.session.session.release", interrupted)
        session.backward(losses(model, x))
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    before = values(model)
    session.backward(torch.zeros(0))
    optimizer.step()
    assert same(before, values(model))


def test_a_ledger_that_cannot_be_written_stops_training_before_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer, session = attach(NOISY, ledger=tmp_path / "ledger")
    session.backward(losses(model, torch.randn(4, 3).double()))
    before = values(model)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(2):
        with pytest.raises(LedgerError):
            optimizer.step()
        assert same(before, values(model))
        assert all(parameter.grad is None for parameter in model.parameters())
        session.backward(losses(model, torch.randn(4, 3).double()))


def test_steps_are_a_hard_limit() -> None:
    model, optimizer, session = attach(replace(NOISY, steps=2))
    for _ in range(2):
        session.backward(torch.zeros(0))
        optimizer.step()
    before = values(model)
    for _ in range(2):
        session.backward(losses(model, torch.randn(4, 3).double()))
        with pytest.raises(BudgetExhaustedError):
            optimizer.step()
        assert same(before, values(model))
        assert session.steps == 2
        assert not session._parts.update._sums


class Refuses(Monitor):
    """Ends training at the first update."""

    def see(self, update: NoisedUpdate) -> None:
        raise MonitorAlarmError("the first update", where=self.name, cure="Wait")

    def report(self) -> dict[str, int]:
        return {"seen": 1}


def test_an_alarm_of_a_monitor_takes_the_update_away_and_the_charge_and_its_report_stand(tmp_path: Path) -> None:
    model, optimizer, session = attach(NOISY, ledger=tmp_path / "ledger", monitors=[Refuses()])
    before = values(model)
    session.backward(losses(model, torch.randn(4, 3).double()))
    with pytest.raises(MonitorAlarmError):
        optimizer.step()
    assert same(before, values(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    view = read_ledger(tmp_path / "ledger")
    assert view.steps == session.steps == 1
    assert {"seen": 1} in [note.values for note in view.notes]


def test_what_was_taken_on_trust_is_in_the_ledger_before_the_step_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, optimizer, session = attach(NOISY, ledger=tmp_path / "ledger")
    session.backward(torch.zeros(0))
    order: list[str] = []
    for name in ("trust", "_charge"):
        real = getattr(Spending, name)
        monkeypatch.setattr(
            Spending, name, lambda self, *rest, real=real, name=name: (order.append(name), real(self, *rest))[1]
        )
    optimizer.step()
    assert order == ["trust", "_charge"]
