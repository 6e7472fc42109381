"""A program's parts: slots, tensors and names of calls."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from programs import program

from hushgrad.guards.probing.loss_program import Program, Slot, mapped, slots_of, tensors_of


def test_tensors_are_found_in_every_kind_of_tuple() -> None:
    assert len(list(tensors_of(torch.ones(3, 2).max(1), [torch.ones(1)], {"a": (torch.ones(1),)}))) == 4


def test_nested_arguments_keep_their_structure_and_slots_are_found_in_them() -> None:
    given = mapped(((1, [2]), {"a": 3}), lambda value: Slot(value) if value > 1 else value)
    assert given == ((1, [Slot(2)]), {"a": Slot(3)})
    assert slots_of(given) == [Slot(2), Slot(3)]


def test_a_call_is_named_with_its_line() -> None:
    found = program(lambda o, y: F.cross_entropy(o, y))
    assert str(found.calls[-1]).startswith("cross_entropy (test_loss_program.py, line ")
    assert found.last == len(found.calls)
    assert Program(3).last == 0
