"""A loop's program run again, on other values of the item and of the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
BY_OTHER_KERNELS = 1e-4
"""How far a value may move, relative to the largest of its row: shapes and kernels are the same in both runs,
but for the last, which is for single precision and wider."""


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


def replayed(
    program: Program,
    altered: Mapping[int, Tensor],
    number: Number = _unchanged,
    *,
    scale: float = 1.0,
    weights: Mapping[int, float] | None = None,
    turn: int = 0,
) -> Replay:
    """Run the program with some sources exchanged, with other numbers among its arguments, and with losses · `scale`.

    `weights`: by slot, what each of the losses is multiplied by. `turn`: of those random numbers that it draws.

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
    devices = list({value.device for value in values.values()})
    with forked_randomness(devices, SEED + turn), _Reached(program) as reached:
        try:
            reached.hold(values, values)
            for place, call in enumerate(program.calls[: program.last]):
                result = _called(call, values, number)
                if call.taken is not None:
                    numbers[place] = result.tolist() if hasattr(result, "tolist") else result
                    continue
                made = list(tensors_of(result))
                if call.places:
                    made = [made[index] for index, _ in call.places]
                values.update(zip(call.outputs, made, strict=True))
                reached.hold(values, call.outputs)
                rows.update({(place, slot): made[i].detach() for i, slot in enumerate(call.outputs)})
            for hooks in program.node_hooks:
                hooks.hang(values[hooks.slot])
            factors = [scale * (1.0 if weights is None else weights.get(end.slot, 1.0)) for end in program.ends]
            gradients = _gradients([values[end.slot] for end in program.ends], leaves, factors)
        except Exception as error:
            raise NotRunningError(numbers) from error
    return Replay({slot: value.detach() for slot, value in values.items()}, numbers, rows, gradients)


class _Reached:
    """Lets tensors that code of the loop's own reads by itself hold the values of a run, and then their own again."""

    def __init__(self, program: Program) -> None:
        self._reached = program.reached
        self._own: dict[int, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> _Reached:
        return self

    def __exit__(self, *_: object) -> None:
        for tensor, own in self._own.values():
            tensor.data = own

    def hold(self, values: Mapping[int, Tensor], slots: Iterable[int]) -> None:
        """These tensors of the run are there."""
        if not self._reached:
            return
        for slot in slots:
            for tensor in self._reached.get(slot, ()):
                self._own.setdefault(id(tensor), (tensor, tensor.data))
                tensor.data = values[slot].detach()


def _called(call: Made, values: dict[int, Tensor], number: Number) -> Any:
    def filled(value: Any) -> Any:
        if isinstance(value, torch.Generator):
            return value.clone_state()  # each run draws the same
        return values[value.number] if isinstance(value, Slot) else number(value, call)

    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(call.with_gradients))
        for device, dtype in call.autocast:
            stack.enter_context(torch.autocast(device, dtype=dtype))
        if call.saving is not None:
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(*call.saving))
        return call.function(*mapped(call.args, filled), **mapped(call.kwargs, filled))


def _gradients(losses: Sequence[Tensor], leaves: Sequence[Tensor], factors: Sequence[float]) -> list[Tensor | None]:
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    used = [loss.sum() * factor for loss, factor in zip(losses, factors, strict=True) if loss.requires_grad]
    if not wanted or not used:
        return [None] * len(leaves)
    found = iter(torch.autograd.grad(used, wanted, allow_unused=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def axis_of(values: Tensor, size: int) -> int | None:
    """Return the axis of the examples, None where there is none."""
    for axis in (0, 1):
        if axis < values.ndim and values.shape[axis] == size:
            return axis
    return 0 if values.ndim and values.shape[0] and values.shape[0] % size == 0 else None


def row_axis(program: Program, slot: int, values: Tensor) -> int | None:
    """Return the axis of the examples in a tensor of the program; None where there is none."""
    return program.axes.get(slot, axis_of(values, program.size))


def is_same(one: Tensor, other: Tensor, factor: float = 1.0, within: float | None = None) -> bool:
    """Whether the rows of `other` are `factor` times those of `one`, up to rounding.

    Rows that are not finite in the first say nothing of others. `within`: how far a value may move, relative to the
    largest of its row, where kernels may be others.
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
    limit = LOOSE.get(one.dtype, LOW) if within is None else within
    return bool((off <= limit * first.abs().amax(1)).all())


def rounding(program: Program, replay: Replay) -> float:
    """Return how far values may move where rows are computed in other places, relative to the largest of a row."""
    is_narrow = any(call.autocast for call in program.calls) or any(
        value.is_floating_point() and value.dtype not in LOOSE for value in replay.values.values()
    )
    return LOW if is_narrow else BY_OTHER_KERNELS


def numbers_agree(one: Replay, other: Replay) -> bool:
    """Whether the same numbers left torch in two runs, up to rounding."""
    return one.numbers.keys() == other.numbers.keys() and all(
        _is_near(number, other.numbers[call]) for call, number in one.numbers.items()
    )


def _is_near(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_is_near, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or math.isclose(one, other, rel_tol=BY_OTHER_KERNELS) or (one != one and other != other)
    return bool(one == other)


def gradient_pairs(program: Program, base: Replay, changed: Replay) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the gradients of two runs for each output that has any, 0 where one has none."""
    for slot, first, second in zip(program.outputs, base.gradients, changed.gradients, strict=True):
        if first is not None or second is not None:
            zero = torch.zeros_like(base.values[slot])
            yield slot, zero if first is None else first, zero if second is None else second


def first_call(
    program: Program, base: Replay, changed: Replay, is_other: Callable[[Tensor, Tensor], bool]
) -> Made | None:
    """Return the first call of whose rows `is_other` says that they are not as they should be, else the last call."""
    calls = program.calls[: program.last]
    for number, call in enumerate(calls):
        for slot in call.outputs:
            one, other = base.made[number, slot], changed.made[number, slot]
            has_rows = one.shape == other.shape and one.ndim and one.shape[0] == program.size
            if has_rows and is_other(one, other):
                return call
    return next((call for call in reversed(calls) if call.outputs), None)


def differing(program: Program, base: Replay, changed: Replay, kept: Sequence[int]) -> str | None:
    """Return what of the examples that were kept is not what it was, None if all of it is."""
    size, rows = program.size, list(kept)
    for slot, one, other in gradient_pairs(program, base, changed):
        axis = row_axis(program, slot, one)
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
