"""The rows of a loop's program: where they are, which outputs have them, and runs without random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hushgrad.guards.probing.constants import Origin
from hushgrad.guards.probing.deterministic_mode import QUANTILES, DeterministicMode
from hushgrad.guards.probing.loss_program import Program
from hushgrad.guards.probing.loss_replay import Replay, replayed, row_axis
from hushgrad.guards.probing.rows import blocks

LEVEL = QUANTILES[1]
"""Random numbers beyond the first quantile are one for each column."""


def quiet_replay(program: Program, altered: Mapping[int, Tensor]) -> Replay | None:
    """Return a run without random numbers; None where some have no quiet form.

    Raises:
        NotRunningError: it fails on these values.
    """
    with DeterministicMode(LEVEL) as quiet:
        found = replayed(program, altered)
    return None if quiet.unknown is not None else found


def rows_at(program: Program, slot: int, values: Tensor | None, chosen: Sequence[int] | None = None) -> Tensor | None:
    """Return the rows of a tensor, of all examples or of some; None where it has none."""
    axis = None if values is None else row_axis(program, slot, values)
    if values is None or axis is None:
        return None
    rows = blocks(values, axis, program.size)
    return rows if chosen is None else rows[list(chosen)]


def rowed_outputs(program: Program) -> list[int] | None:
    """Return the outputs of the model with a row for each example; None where losses come from others."""
    found = []
    for slot in program.outputs:
        values = program.sources[slot].values
        if row_axis(program, slot, values) is not None:
            found.append(slot)
        elif values.is_floating_point():
            return None
    return found


def key_of_output(program: Program, slot: int) -> tuple[nn.Module | None, Any]:
    """Return the module that made an output, and where in what it returned that was."""
    return program.made_by.get(slot, (None, ()))


def from_outside(program: Program) -> list[int]:
    """Return the sources that may be others in another item without anybody's following the draw: noise, parameters.

    What the loop makes of Python's numbers, the same for all rows, stays: a number may follow the draw.
    """
    found = []
    for slot, origin in program.origins.items():
        values = program.sources[slot].values
        is_number = values.numel() < 2 and origin is not Origin.TRAINED
        if origin in (Origin.RANDOM, Origin.TRAINED) or (origin is Origin.UNKNOWN and not is_number):
            found.append(slot)
        elif origin is Origin.PYTHON:
            rows = rows_at(program, slot, values)
            if rows is not None and not bool((rows == rows[:1]).all()):
                found.append(slot)
    return found


def key_from_outside(program: Program, slot: int) -> tuple[bool, int, torch.dtype, Origin]:
    """Return by what a source from outside is found in another item; first, whether it has a row for each example."""
    values = program.sources[slot].values
    has_rows = program.origins[slot] is not Origin.TRAINED and row_axis(program, slot, values) is not None
    return has_rows, values.ndim, values.dtype, program.origins[slot]
