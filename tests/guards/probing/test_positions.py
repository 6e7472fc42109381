"""Which axes of an output have positions is what a short record shows alone, not how long they are by chance."""

from __future__ import annotations

import torch
from torch import nn

from hushgrad.guards.probing.positions import Positions

B, T = 5, 4


def test_axes_that_are_shorter_for_a_record_alone_have_positions() -> None:
    module, positions = nn.Identity(), Positions()
    whole = {"classes": torch.zeros(B, T), "tokens": torch.zeros(B, T, T), "turned": torch.zeros(T, B)}
    alone = {"classes": torch.zeros(1, T), "tokens": torch.zeros(1, 2, T), "turned": torch.zeros(2, 1)}
    positions.learn(module, whole, alone, {("classes",): 0, ("tokens",): 0, ("turned",): 1})
    assert positions.of(module, ("classes",)) == frozenset()
    assert positions.of(module, ("tokens",)) == {1}
    assert positions.of(module, ("turned",)) == {0}


def test_of_other_modules_and_outputs_nothing_is_known() -> None:
    module, positions = nn.Identity(), Positions()
    positions.learn(module, {"a": torch.zeros(B, T), "b": torch.zeros(B, T)}, {"a": torch.zeros(1)}, {("a",): 0})
    assert positions.of(module, ("a",)) is positions.of(module, ("b",)) is positions.of(nn.Identity(), ("a",)) is None
