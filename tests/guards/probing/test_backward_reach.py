"""What code of the loop's own can read is found, and of objects and files only what the code names."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.backward_reach import Reach

KNOWN = torch.tensor(0.3)
OTHER = torch.tensor(0.4)
NUMBER = 0.3


def by_name(gradient: Tensor) -> Tensor:
    return gradient * KNOWN


class Holder:
    """Has a hook, in several forms, that reads one of two attributes."""

    def __init__(self, factor: Any) -> None:
        self.factor, self.last = factor, OTHER

    @property
    def own(self) -> Any:
        return self.factor

    def hook(self, gradient: Tensor) -> Tensor:
        return self.scaled(gradient)

    def scaled(self, gradient: Tensor) -> Tensor:
        return gradient * self.own  # type: ignore[no-any-return]

    def __call__(self, gradient: Tensor) -> Tensor:
        return self.scaled(gradient)


class Function(torch.autograd.Function):
    """Its backward reads what its class keeps."""

    factor: Any = KNOWN
    last = OTHER

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * Function.factor


def closed_over(factor: Any) -> Any:
    held = {"factor": [factor]}
    return lambda gradient: gradient * held["factor"][0]


READERS: dict[str, Any] = {
    "a variable that is closed over": closed_over(KNOWN),
    "a default": lambda gradient, factor=KNOWN: gradient * factor,
    "a partial function": partial(torch.mul, KNOWN),
    "a variable of the file": by_name,
    "a bound object": Holder(KNOWN).hook,
    "an object that is called": Holder(KNOWN),
    "the class of an autograd function": Function,
}


@pytest.mark.parametrize("name", READERS)
def test_a_tensor_is_reached_however_code_holds_it_and_what_it_does_not_name_is_not(name: str) -> None:
    assert list(Reach([READERS[name]]).tensors.values()) == [KNOWN]


def test_numbers_are_reached_that_are_no_whole_ones_and_those_in_the_code_are_told_apart() -> None:
    assert Reach([closed_over(NUMBER)]).numbers == [NUMBER]
    assert Reach([closed_over(3.0)]).numbers == []
    found = Reach([lambda gradient: gradient * 0.25])
    assert (found.numbers, found.written) == ([], [0.25])


def test_things_that_hold_each_other_end() -> None:
    holder = Holder(None)
    holder.factor = [holder, KNOWN]
    assert list(Reach([holder.hook]).tensors.values()) == [KNOWN]


def test_of_a_module_the_buffers_are_reached_that_code_names_and_no_parameters() -> None:
    module = nn.BatchNorm1d(2)
    found = Reach([lambda gradient: gradient * module.running_var])
    assert list(found.tensors) == [id(module.running_var)]
