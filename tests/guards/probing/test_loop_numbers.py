"""A number that equals a batch's size or length by chance is told from one that follows it by items of other sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import program_of
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.loop_numbers import LoopNumbers
from hushgrad.guards.probing.loss_examination import require_separate_program
from hushgrad.guards.probing.loss_program import Made, Program

SIX = 6


def ce(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output, targets, reduction="none")


def by_constant(output: Tensor, targets: Tensor) -> Tensor:
    return ce(output, targets) / SIX


def by_constant_that_asks(output: Tensor, targets: Tensor) -> Tensor:
    assert len(targets) < 100
    return ce(output, targets) / SIX


def by_literal(output: Tensor, targets: Tensor) -> Tensor:
    assert len(targets) < 100
    return ce(output, targets) / 6


def by_size(output: Tensor, targets: Tensor) -> Tensor:
    return ce(output, targets) / len(targets)


def of_size(loss: object, size: int) -> Program:
    return program_of(loss, torch.randn(size, 3), torch.arange(size) % 3, is_rows=True)  # type: ignore[arg-type]


def examined(loss: object, *sizes: int) -> None:
    known = LoopNumbers()
    for size in sizes:
        found = of_size(loss, size)
        require_separate_program(found, "mean", 100.0, known)
        known.note(found)


def division(found: Program) -> Made:
    return next(call for call in found.calls if "div" in call.name)


def test_a_number_is_constant_if_its_line_had_it_in_an_item_of_another_size() -> None:
    known, found = LoopNumbers(), of_size(by_constant, 6)
    known.note(found)
    assert not known.are_constant(division(found), [6.0], {6})
    known.note(of_size(by_constant, 8))
    assert known.are_constant(division(found), [6.0], {6})
    assert not known.are_constant(division(found), [7.0], {6})
    assert not known.follow_size(division(found), 6)


def test_a_line_follows_the_size_if_it_had_that_of_another_item() -> None:
    known, found = LoopNumbers(), of_size(by_size, 6)
    known.note(found)
    assert not known.follow_size(division(found), 6)
    known.note(of_size(by_size, 8))
    assert known.follow_size(division(found), 6)
    assert not known.are_constant(division(found), [6.0], {6})


@pytest.mark.parametrize("loss", [by_constant, by_literal])
def test_a_divisor_that_equals_the_size_of_a_batch_by_chance_is_no_function_of_it(loss: object) -> None:
    for sizes in ((6,), (6, 8), (8, 6), (6, 8, 6, 6)):
        examined(loss, *sizes)


def test_where_the_loop_asks_for_the_size_an_item_of_another_size_tells_that_it_is_a_constant() -> None:
    examined(by_constant_that_asks, 8, 6, 6)
    with pytest.raises(CrossSampleLeakError, match="divided by the number of examples"):
        examined(by_constant_that_asks, 6)


def test_a_divisor_that_follows_the_size_is_refused_at_once() -> None:
    for sizes in ((6,), (8,)):
        with pytest.raises(CrossSampleLeakError, match="divided by the number of examples"):
            examined(by_size, *sizes)
