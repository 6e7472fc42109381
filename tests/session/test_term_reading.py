"""What a function of parameters reads is told from its calls: equal programs read equal things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hushgrad.session.term_reading import TermReading

WEIGHT, BIAS = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))
OUTSIDE = torch.arange(3.0)


def read(term: Callable[[], Any]) -> TermReading:
    reading = TermReading({"weight": WEIGHT, "bias": BIAS})
    with reading:
        term()
    return reading


def test_a_program_is_the_same_for_other_values_of_the_parameters() -> None:
    def term() -> Tensor:
        return (WEIGHT.t() @ BIAS).square().sum() + BIAS[1:].exp().sum() * 2.0

    before = read(term).program
    with torch.no_grad():
        WEIGHT.add_(1)
        BIAS.mul_(3)
    assert read(term).program == before


DIFFERENT: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "another parameter": (lambda: WEIGHT.sum(), lambda: BIAS.sum()),
    "another call": (lambda: BIAS.sum(), lambda: BIAS.mean()),
    "a constant for a parameter": (lambda: (BIAS * BIAS).sum(), lambda: (BIAS * OUTSIDE).sum()),
    "another result": (lambda: (BIAS.exp(), BIAS.sin())[0].sum(), lambda: (BIAS.exp(), BIAS.sin())[1].sum()),
    "another number": (lambda: BIAS * 2.0, lambda: BIAS * 3.0),
    "a whole number": (lambda: BIAS * 2, lambda: BIAS * 2.0),
    "another slice": (lambda: BIAS[:2], lambda: BIAS[:1]),
    "another list": (lambda: BIAS[[0, 1]], lambda: BIAS[[0, 2]]),
    "another name": (lambda: BIAS.sum(dim=0), lambda: BIAS.sum(dim=0, keepdim=True)),
    "another dtype": (lambda: BIAS.to(torch.float64), lambda: BIAS.to(torch.float16)),
    "one call more": (lambda: BIAS.sum(), lambda: BIAS.abs().sum()),
    "another array": (lambda: torch.tensor(np.ones(2)), lambda: torch.tensor(np.zeros(2))),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_reads_or_computes_something_else_is_another_program(name: str) -> None:
    one, other = DIFFERENT[name]
    assert read(one).program == read(one).program
    assert read(one).program != read(other).program


def test_constants_come_in_their_order_each_once_and_those_handed_in_are_told() -> None:
    other = torch.ones(3)
    reading = read(lambda: (OUTSIDE * other + OUTSIDE) * torch.zeros(3) + BIAS)
    assert [id(t) for t in reading.handed_in] == [id(OUTSIDE), id(other)]
    assert [tensor.tolist() for tensor in reading.constants] == [[0.0, 1.0, 2.0], [1.0] * 3, [0.0] * 3]


def test_what_was_made_of_no_tensor_keeps_the_values_of_then() -> None:
    def term() -> Tensor:
        total = torch.zeros(())
        total += BIAS.sum()
        return total

    (constant,) = read(term).constants
    assert constant == 0
    assert not constant.requires_grad


def test_parameters_and_what_was_met_or_made_are_known_and_nothing_else_is() -> None:
    made: list[Tensor] = []
    reading = read(lambda: made.append(BIAS * OUTSIDE))
    assert all(map(reading.is_known, (WEIGHT, BIAS, OUTSIDE, made[0])))
    assert not reading.is_known(torch.ones(3))
