"""A loop's program run again, on other values of the item and of the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hushgrad.guards.probing.calls import SEED
from hushgrad.guards.probing.loss_program import Made, Program, Slot, mapped, tensors_of
from hushgrad.guards.probing.rows import blocks
from hushgrad.guards.probing.state import forked_randomness

LOOSE = {torch.float64: 1e-9, torch.float32: 1e-5}
LOW = 3e-2
"""How far a value may move, relative to the largest of its row: shapes and kernels are the same in both runs."""


@dataclass(eq=False)
class Replay:
    """What one run gave.

    Attributes:
        values: tensors, by slot, as they are at the end.
        numbers: what left torch, by call.
        made: what each call made, by call and slot.
        gradients: of the sum of the losses, for each output of the model; None where there is none.
    """

    values: dict[int, Tensor]
    numbers: dict[int, Any]
    made: dict[tuple[int, int], Tensor]
    gradients: list[Tensor | None]


class NotRunningError(Exception):
    """The program cannot be run on these values.

    Attributes:
        numbers: what left torch before it failed, by call.
    """

    def __init__(self, numbers: Mapping[int, Any]) -> None:
        super().__init__("a program cannot be run on other values")
        self.numbers = numbers


Number = Callable[[Any, Made], Any]
"""What becomes of an argument that is no tensor, of a call."""


def _unchanged(value: Any, call: Made) -> Any:
    return value


def replayed(program: Program, altered: Mapping[int, Tensor], number: Number = _unchanged) -> Replay:
    """Run the program with some sources exchanged, and with other numbers among its arguments.

    Raises:
        NotRunningError: it fails on them.
    """
    values: dict[int, Tensor] = {}
    for slot, source in program.sources.items():
        copy = altered.get(slot, source.values).detach().clone()
        values[slot] = copy.requires_grad_(copy.is_floating_point()) if source.kind == "output" else copy
    leaves = [values[slot] for slot in program.outputs]
    # An output may be written to in place, which a leaf may not.
    values.update({slot: leaf.view_as(leaf) for slot, leaf in zip(program.outputs, leaves, strict=True)})
    numbers: dict[int, Any] = {}
    rows: dict[tuple[int, int], Tensor] = {}
    with forked_randomness(list({value.device for value in values.values()}), SEED):
        try:
            for place, call in enumerate(program.calls[: program.last]):
                result = _called(call, values, number)
                if call.taken is not None:
                    numbers[place] = result.tolist() if hasattr(result, "tolist") else result
                    continue
                made = list(tensors_of(result))
                if call.places:
                    made = [made[index] for index, _ in call.places]
                values.update(zip(call.outputs, made, strict=True))
                rows.update({(place, slot): made[i].detach() for i, slot in enumerate(call.outputs)})
            gradients = _gradients([values[end.slot] for end in program.ends], leaves)
        except Exception as error:
            raise NotRunningError(numbers) from error
    return Replay({slot: value.detach() for slot, value in values.items()}, numbers, rows, gradients)


def _called(call: Made, values: dict[int, Tensor], number: Number) -> Any:
    def filled(value: Any) -> Any:
        return values[value.number] if isinstance(value, Slot) else number(value, call)

    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(call.with_gradients))
        for device, dtype in call.autocast:
            stack.enter_context(torch.autocast(device, dtype=dtype))
        return call.function(*mapped(call.args, filled), **mapped(call.kwargs, filled))


def _gradients(losses: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor | None]:
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    used = [loss for loss in losses if loss.requires_grad]
    if not wanted or not used:
        return [None] * len(leaves)
    found = iter(torch.autograd.grad([loss.sum() for loss in used], wanted, allow_unused=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def axis_of(values: Tensor, size: int) -> int | None:
    """Return the axis of the examples, None where there is none."""
    for axis in (0, 1):
        if axis < values.ndim and values.shape[axis] == size:
            return axis
    return 0 if values.ndim and values.shape[0] and values.shape[0] % size == 0 else None


def is_same(one: Tensor, other: Tensor, factor: float = 1.0) -> bool:
    """Whether the rows of `other` are `factor` times those of `one`, up to rounding.

    Rows that are not finite in the first say nothing of others.
    """
    if one.shape != other.shape:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return factor == 1 and bool(torch.equal(one, other))
    wide = torch.complex128 if one.is_complex() else torch.float64
    first, second = (part.reshape(len(part), -1).to(wide) for part in (one, other))
    if not first.numel():
        return True
    is_finite = first.isfinite().all(1)
    first, second = first[is_finite] * factor, second[is_finite]
    off = (first - second).abs().nan_to_num(nan=float("inf")).amax(1)
    return bool((off <= LOOSE.get(one.dtype, LOW) * first.abs().amax(1)).all())


def differing(program: Program, base: Replay, changed: Replay, kept: Sequence[int]) -> str | None:
    """Return what of the examples that were kept is not what it was, None if all of it is."""
    size, rows = program.size, list(kept)
    for slot, first, second in zip(program.outputs, base.gradients, changed.gradients, strict=True):
        if first is None and second is None:
            continue
        zero = torch.zeros_like(base.values[slot])
        one, other = (zero if part is None else part for part in (first, second))
        axis = program.axes.get(slot, axis_of(one, size))
        if axis is None:
            if one.numel() == 1 and not is_same(one.reshape(1, 1), other.reshape(1, 1)):
                return "the gradient of the model's own loss"
        elif not is_same(blocks(one, axis, size)[rows], blocks(other, axis, size)[rows]):
            return "the gradient of one example"
    for end in program.ends:
        one, other = base.values[end.slot], changed.values[end.slot]
        if end.is_rows and one.ndim and one.shape[0] == size and not is_same(one[rows], other[rows]):
            return "the loss of one example"
    return None
