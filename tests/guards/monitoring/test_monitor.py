"""Monitors of anybody's: shown what is noised and nothing else, kept from writing, named, and heard at the end."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from hushgrad import DPSGD, FlatClipping, Monitor, NoisedUpdate, PoissonSampling
from hushgrad.errors import ContractChangedError, InvalidArgumentError
from hushgrad.guards.monitoring.monitor import Monitors

MECHANISM = DPSGD(
    noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=4
)
STD = {"weight": 0.5}


class Looks(Monitor):
    """Keeps what it is shown, and reports what it is told to."""

    def __init__(self, said: Any = None) -> None:
        self.seen: list[NoisedUpdate] = []
        self.said = said

    def see(self, update: NoisedUpdate) -> None:
        self.seen.append(update)

    def report(self) -> Any:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


class Writes(Looks):
    def see(self, update: NoisedUpdate) -> None:
        next(iter(update.gradients.values())).mul_(2)


def parameters() -> dict[str, nn.Parameter]:
    found = {name: nn.Parameter(torch.zeros(2)) for name in ("weight", "frozen")}
    found["weight"].grad = torch.tensor([1.0, 2.0])
    return found


@pytest.mark.parametrize(
    "wrong", [Looks(), [Looks], [print], "monitor"], ids=["no list", "a class", "a function", "a name"]
)
def test_what_is_no_list_of_monitors_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="monitor"):
        Monitors(wrong)


def test_every_monitor_is_shown_the_update_as_it_was_written_and_frozen_parameters_have_none() -> None:
    monitors = [Looks(), Looks()]
    Monitors(monitors).see(3, MECHANISM, parameters(), STD)
    for monitor in monitors:
        (update,) = monitor.seen
        assert (update.number, update.mechanism, set(update.gradients)) == (3, MECHANISM, {"weight"})
        assert update.gradients["weight"].tolist() == [1, 2]
        assert dict(update.noise_std) == STD


def test_a_monitor_that_writes_to_the_update_is_named_and_ends_the_step() -> None:
    with pytest.raises(ContractChangedError, match=r"Writes: this monitor changed"):
        Monitors([Looks(), Writes()]).see(0, MECHANISM, parameters(), STD)


@pytest.mark.parametrize("uncounted", [lambda g: g.view(-1)[:1].data.add_(9), lambda g: g.numpy().fill(9)])
def test_a_write_that_pytorch_does_not_count_reaches_neither_the_update_nor_the_next_monitor(uncounted: Any) -> None:
    class Hides(Looks):
        def see(self, update: NoisedUpdate) -> None:
            uncounted(update.gradients["weight"])

    held, after = parameters(), Looks()
    Monitors([Hides(), after]).see(0, MECHANISM, held, STD)
    assert held["weight"].grad is not None
    assert held["weight"].grad.tolist() == [1, 2]
    assert after.seen[0].gradients["weight"].tolist() == [1, 2]


def test_a_monitor_that_reaches_the_update_itself_is_named() -> None:
    held = parameters()

    class Reaches(Looks):
        def see(self, update: NoisedUpdate) -> None:
            assert held["weight"].grad is not None
            held["weight"].grad.mul_(2)

    with pytest.raises(ContractChangedError, match=r"Reaches: this monitor changed"):
        Monitors([Reaches()]).see(0, MECHANISM, held, STD)


def test_what_is_shown_holds_no_place_for_another_gradient() -> None:
    monitor = Looks()
    Monitors([monitor]).see(0, MECHANISM, parameters(), STD)
    with pytest.raises(TypeError):
        monitor.seen[0].gradients["frozen"] = torch.zeros(2)  # type: ignore[index]


def test_every_monitor_is_on_trust_under_its_own_name() -> None:
    conditions = Monitors([Looks(), Writes()]).conditions
    assert len(set(conditions)) == 2
    assert [
        f"{__name__}.{kind}" in condition.name for kind, condition in zip(("Looks", "Writes"), conditions, strict=True)
    ]


@pytest.mark.parametrize(
    "bad",
    [{"x": math.nan}, {"x": math.inf}, {"x": True}, {"x": torch.ones(1)}, {1: 2}, [1], ZeroDivisionError()],
    ids=str,
)
def test_a_report_that_no_ledger_takes_is_said_to_have_failed_and_ends_nothing(bad: Any) -> None:
    ((about, report),) = Monitors([Looks(), Looks(bad)]).reports()
    assert about == f"monitor {__name__}.Looks"
    assert list(report) == ["failed"]


def test_a_report_of_numbers_and_texts_is_kept_and_no_report_is_none() -> None:
    said = {"steps": 3, "ratio": 0.5, "verdict": "well"}
    assert [report for _, report in Monitors([Looks(said), Looks()]).reports()] == [said]
