"""Whether tensors from outside are constants of a loop is told by the item after."""

from __future__ import annotations

import torch

from hushgrad.guards.probing.constants import Constants


def test_a_tensor_that_comes_again_is_a_constant() -> None:
    constants, kept = Constants(), torch.ones(3)
    for _ in range(3):
        constants.meet(kept)
        constants.end_item()
    assert not constants.are_made_anew
    assert not constants.are_open


def test_a_tensor_that_is_gone_an_item_later_was_made_anew() -> None:
    constants = Constants()
    for _ in range(2):
        made = torch.ones(3)
        constants.meet(made)
        constants.end_item()
        assert constants.are_open
    del made
    assert constants.are_made_anew


def test_a_tensor_that_is_gone_within_its_item_was_made_anew() -> None:
    constants = Constants()
    constants.meet(None)
    assert constants.are_made_anew


def test_after_the_first_item_nothing_is_told_yet() -> None:
    constants = Constants()
    constants.meet(torch.ones(3))
    constants.end_item()
    assert constants.are_open
    assert not constants.are_made_anew
