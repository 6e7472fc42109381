"""Tensors of a loop's program have one number each, and those with values of the batch are told apart."""

from __future__ import annotations

import torch

from hushgrad.guards.probing import loss_tensors
from hushgrad.guards.probing.loss_program import Earlier, Program, Slot
from hushgrad.guards.probing.loss_tensors import LossTensors
from hushgrad.guards.probing.outside_values import OutsideValues

ITEM = torch.arange(6.0).reshape(3, 2)


def of_item() -> tuple[LossTensors, Program]:
    program, earlier = Program(3), Earlier()
    tensors = LossTensors(program, OutsideValues(ITEM, earlier.constants, 3), earlier)
    tensors.adopt(ITEM, "item")
    return tensors, program


def test_a_part_of_the_item_is_live_and_a_constant_is_not() -> None:
    tensors, program = of_item()
    constant = torch.ones(2)
    given = tensors.given(constant, is_changed=False)
    assert tensors.is_live(ITEM)
    assert given == Slot(2)
    assert program.sources[2].kind == "constant"
    assert not tensors.is_live(constant)
    assert tensors.takes_batch((constant, ITEM), {})
    assert not tensors.takes_batch((constant,), {})


def test_a_number_is_kept_for_as_long_as_its_tensor_lives() -> None:
    tensors, _ = of_item()
    first = torch.ones(2)
    number = tensors.made(first)
    assert tensors.slot(first) == tensors.made(first) == number
    assert set(tensors.of_batch()) == {id(ITEM), id(first)}
    other = torch.ones(2)
    assert [id(tensor) for tensor in tensors.without_number([first, other])] == [id(other)]
    reference, _ = tensors.of_batch()[id(first)]
    del first
    assert reference() is None


def test_what_a_call_will_change_is_kept_as_it_was() -> None:
    tensors, program = of_item()
    total = torch.zeros(2)
    slot = tensors.given(total, is_changed=True).number
    total += 5
    assert program.sources[slot].values.tolist() == [0.0, 0.0]


def test_a_view_of_the_batch_that_no_call_made_is_live() -> None:
    tensors, program = of_item()
    view = ITEM.data
    assert tensors.takes_over(view)
    assert tensors.is_live(view)
    assert program.calls
    assert not program.hidden


def test_too_many_values_hide_the_program_and_are_not_kept() -> None:
    tensors, program = of_item()
    tensors._kept = loss_tensors.MOST_KEPT
    slot = tensors.adopt(torch.ones(4), "constant")
    assert program.hidden == "it works on too many values"
    assert program.sources[slot].values.numel() == 0


def test_nothing_is_held_once_it_is_forgotten() -> None:
    tensors, _ = of_item()
    tensors.forget()
    assert tensors.slot(ITEM) is None
    assert not tensors.has_met(ITEM)
    assert not tensors.memory.holds(ITEM)
