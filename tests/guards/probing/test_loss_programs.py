"""Which items' programs are looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.loss_programs import FIRST, LossPrograms
from hushgrad.guards.probing.widths import Drawn
from hushgrad.randomness import KeyStream
from hushgrad.torch_internals import top_mode


def drawn(item: Any) -> Drawn:
    return Drawn(None, (), item, None)


def looked_at(programs: LossPrograms, items: int, size: int = 4) -> list[int]:
    found = []
    for number in range(items):
        programs.begin(size, drawn((torch.ones(size, 2),)))
        if top_mode() is not None:
            found.append(number)
        programs.forget()
    return found


def test_the_first_items_are_looked_at_and_later_ones_at_random() -> None:
    assert looked_at(LossPrograms("mean", None), 40) == [*range(FIRST)]
    later = looked_at(LossPrograms("mean", None, KeyStream.fixed_for_tests(3)), 40)
    assert later[:FIRST] == [*range(FIRST)]
    assert FIRST < len(later) < 40


def test_batches_of_one_example_are_not_looked_at() -> None:
    assert looked_at(LossPrograms("mean", None), 5, size=1) == []


def test_an_item_whose_examples_change_each_other_is_refused() -> None:
    """Guarantee: no update is released from an item that was looked at, if one example's loss, or the gradient that its
    outputs get, changes with the rows of others."""
    programs = LossPrograms("mean", None)
    item = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    programs.begin(4, drawn((item,)))
    programs.given(((item,), {}), None)
    output = (item * 1).requires_grad_() * 1
    programs.returned(output)
    losses = output.square().sum(1)
    programs.losses(losses / losses.detach().sum())
    with pytest.raises(CrossSampleLeakError, match=r"test_loss_programs\.py, line"):
        programs.examine(None)
    programs.forget()
