"""Tensors of lengths alone are made again of other lengths: by the same calls, and only where nothing else went in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hushgrad.guards.probing.loss_program import Program
from hushgrad.guards.probing.loss_trace import LossTrace

WIDTH, OTHER = 7, 9
PLACES = torch.randn(20)


def program_of(make: Any) -> Program:
    """Write down a loop that adds what it makes of a width to an item `[3, WIDTH]`, and gives that to a model."""
    item = torch.randn(3, WIDTH)
    trace = LossTrace(3, item, {})
    try:
        trace.given(((item + make(item.shape[1]),), {}), ())
    finally:
        trace.end()
    return trace.program


def made_again(make: Any) -> list[Tensor]:
    return [recipe({WIDTH: OTHER, WIDTH - 1: OTHER - 1}) for recipe in program_of(make).recipes.values()]


def test_a_tensor_of_a_length_is_that_of_another_length() -> None:
    for make in (
        lambda width: torch.arange(width),
        lambda width: torch.linspace(0, 1, width),
        lambda width: torch.arange(width) / (width - 1),
        lambda width: torch.full((width,), 1 / width),
        lambda width: PLACES[:width],
        lambda width: torch.softmax(torch.ones(1, width).cumsum(1) / width, 1),
    ):
        [again] = made_again(make)
        assert torch.equal(again, make(OTHER))


def test_a_number_in_the_code_is_no_length() -> None:
    [again] = made_again(lambda width: torch.arange(width) * 6)
    assert torch.equal(again, torch.arange(OTHER) * 6)
    assert made_again(lambda width: torch.linspace(0, 1, 7)) == []


def test_what_was_written_to_since_has_no_recipe() -> None:
    def make(width: int) -> Tensor:
        places = torch.arange(width)
        places += 1
        return places

    assert made_again(make) == []
    assert made_again(lambda width: torch.randn(1, 1)) == []


def test_making_it_again_draws_from_no_generator() -> None:
    generator = torch.Generator().manual_seed(1)
    assert made_again(lambda width: torch.rand(width, generator=generator)) == []
    assert made_again(lambda width: torch.tensor([float(width)] * 20)[:7]) == []
