"""A program run again gives what it gave, on its own values and on others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from programs import OUTPUT, TARGETS, B, program

from hushgrad.guards.probing.loss_replay import NotRunningError, axis_of, is_same, replayed
from hushgrad.guards.probing.rows import blocks


def test_losses_and_gradients_are_those_of_the_loop() -> None:
    found = program(lambda o, y: F.cross_entropy(o, y))
    replay = replayed(found, {})
    output = OUTPUT.clone().requires_grad_()
    loss = F.cross_entropy(output, TARGETS)
    loss.backward()
    assert torch.equal(replay.values[found.ends[0].slot], loss.detach())
    (gradient,) = replay.gradients
    assert gradient is not None
    assert torch.equal(gradient, output.grad)  # type: ignore[arg-type]


def test_values_of_the_loop_stay_as_they_are() -> None:
    found = program(lambda o, y: (o * 1).mul_(2).mean())
    before = {slot: source.values.clone() for slot, source in found.sources.items()}
    replayed(found, {})
    assert all(torch.equal(values, found.sources[slot].values) for slot, values in before.items())


def test_what_fails_on_other_values_is_said() -> None:
    found = program(lambda o, y: o[y == 0].view(3, 3).mean())
    with pytest.raises(NotRunningError):
        replayed(found, {slot: source.values * 0 for slot, source in found.sources.items() if source.kind == "item"})


def test_rows_are_the_same_up_to_rounding_and_a_factor() -> None:
    one = torch.rand(B, 4)
    assert is_same(one, one * (1 + 1e-7))
    assert not is_same(one, one * 1.001)
    assert is_same(one, one * 2, 2.0)
    assert not is_same(torch.arange(3), torch.arange(3) + 1)


def test_the_axis_of_the_examples_is_told_and_their_parts_are_views() -> None:
    values = torch.zeros(2 * B, 3)
    assert axis_of(values, B) == 0
    assert axis_of(torch.zeros(5, B), B) == 1
    assert axis_of(torch.zeros(5), B) is None
    blocks(values, 0, B)[1] = 1
    assert values[2:4].all()
