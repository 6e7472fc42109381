"""Where a program has its rows, and what comes into it from outside."""

from __future__ import annotations

import torch
from programs import B, K, program
from torch.nn import functional as F

from hushgrad.guards.probing.constants import Origin
from hushgrad.guards.probing.program_rows import from_outside, quiet_replay, row_axis, rowed_outputs, rows_at

WEIGHT = torch.ones(K, requires_grad=True)


def test_rows_are_found_by_the_axis_of_the_examples() -> None:
    found = program(lambda o, y: F.cross_entropy(o, y, reduction="none"), is_rows=True)
    [slot] = found.outputs
    assert rowed_outputs(found) == [slot]
    assert row_axis(found, -1, torch.zeros(B, 2)) == 0
    assert row_axis(found, -1, torch.zeros(2, B)) == 1
    assert row_axis(found, -1, torch.zeros(5)) is None
    rows = rows_at(found, -1, torch.arange(2 * B).view(2, B), [1, 0])
    assert rows is not None
    assert rows.tolist() == [[[1, B + 1]], [[0, B]]]


def test_noise_and_parameters_may_be_others_in_another_item_and_numbers_of_pythons_may_not() -> None:
    found = program(
        lambda o, y: (o * torch.randn(o.shape) * WEIGHT.detach() * torch.full((K,), 0.3) * torch.arange(K)).sum(1),
        is_rows=True,
    )
    origins = {found.origins[slot] for slot in from_outside(found)}
    assert origins == {Origin.RANDOM, Origin.TRAINED}
    assert {*found.origins.values()} - origins == {Origin.PYTHON, Origin.FIXED}


def test_quiet_runs_draw_the_same_for_each_row() -> None:
    found = program(lambda o, y: (0 * o + torch.randn_like(o)).sum(1), is_rows=True)
    replay = quiet_replay(found, {})
    assert replay is not None
    values = replay.values[found.ends[0].slot]
    assert torch.allclose(values, values[:1].expand(B))
