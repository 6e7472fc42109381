"""The batch axis of an operator found by measurement: its call is repeated on each example alone, and compared.

For operators whose arguments have too many forms for a rule of their own (`tensordot`, `linalg.solve`, `cross`), and in
which *which* values meet depends on shapes and constant arguments only, never on the values: that is what
`table.MEASURED` is reviewed for. No operator that is cut off somewhere (a threshold, a largest value, a rank) by what
several examples hold may stand in it, and none that orders, counts or indexes.

A worked example: `torch.tensordot(x, w, 1)` with x `[B, d]` on axis 0 and w `[d, p]`. Random numbers take the places of
x and w; the call gives `[B, p]`, and on x's row i alone it gives `[1, p]`. Put one behind the other along axis 0, the B
small outputs are the large one, so the batch lies there. `torch.tensordot(x, x, dims=([0], [0]))` gives `[d, d]` for
one row, too: no axis.

Real values would prove too little: where all are 0, or the examples alike, every axis looks right. So the numbers are
drawn, from a generator of their own, in float64 on the CPU: what a wrong axis hides behind rounding is nothing. The
call's vector-Jacobian product is compared in the same way. As the outcome depends on no value, it is remembered.

Guarantee: an axis is returned only if all rows of drawn outputs, and of gradients, are those of one alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.rules import Axis, OperatorCall
from hushgrad.torch_internals import tree_flatten, tree_unflatten

ROUNDS = 2
TOLERANCE = 1e-9
LARGEST = 1 << 26
"""How many values a call may take and give to be measured; a larger one loses the batch."""
REMEMBERED = 4096

PLAIN = (bool, int, float, complex, str, torch.dtype, type(None))
REFUSALS = (RuntimeError, ValueError, NotImplementedError, TypeError, IndexError)
"""What torch raises where a call does not work on other values, or on one example."""

_known: dict[Any, list[Axis]] = {}


def measured(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """Return the axis along which the call on each example alone gives that example's part of the output."""
    if call.batch_size < 2 or out.numel() > LARGEST:
        return None
    key = _key_of(call)
    if key is None:
        return None
    found = _known.get(key)
    if found is None:
        if len(_known) >= REMEMBERED:
            _known.clear()
        trial = _trial_of(call)
        found = _known[key] = [] if trial is None else trial.axes()
    axis = found[output_index] if output_index < len(found) else None
    return axis if axis is not None and axis < out.ndim and out.shape[axis] % call.batch_size == 0 else None


class _NotMeasurableError(Exception):
    """A call takes other things than numbers and floating tensors."""


def _key_of(call: OperatorCall) -> Any:
    """Return what the outcome depends on: kinds, shapes, axes and which tensors are one; None for other calls.

    This runs in every step, a trial only for a new key.
    """
    seen: list[Tensor] = []
    try:
        return call.func, call.batch_size, _part_of_key(call, call.args, seen), _part_of_key(call, call.kwargs, seen)
    except _NotMeasurableError:
        return None


def _part_of_key(call: OperatorCall, value: Any, seen: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        is_complex = value.is_complex()
        if not (is_complex or value.is_floating_point()) or value.layout is not torch.strided:
            raise _NotMeasurableError
        for at, other in enumerate(seen):
            if other is value:
                return at
        seen.append(value)
        return value.shape, is_complex, call.axis_of(value)
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, (tuple, list)):
        return type(value), *(_part_of_key(call, part, seen) for part in value)
    if isinstance(value, dict):
        return dict, *((name, _part_of_key(call, part, seen)) for name, part in value.items())
    raise _NotMeasurableError


def _trial_of(call: OperatorCall) -> _Trial | None:
    """Return the trial of a call; None for one that writes into a tensor, is too large, or has examples in part."""
    flat, spec = tree_flatten((list(call.args), call.kwargs))
    tensors: list[Tensor] = []
    places: list[int | None] = []
    for value in flat:
        if not isinstance(value, Tensor):
            places.append(None)
            continue
        at = next((index for index, other in enumerate(tensors) if other is value), len(tensors))
        if at == len(tensors):
            tensors.append(value)
        places.append(at)
    axes = [call.axis_of(value) for value in tensors]
    if call.kwargs.get("out") is not None or sum(value.numel() for value in tensors) > LARGEST:
        return None
    if any(axis is not None and value.shape[axis] % call.batch_size for value, axis in zip(tensors, axes, strict=True)):
        return None

    def run(values: list[Tensor]) -> list[Tensor]:
        again = [value if at is None else values[at] for value, at in zip(flat, places, strict=True)]
        args, kwargs = tree_unflatten(again, spec)
        result = call.func(*args, **kwargs)
        return list(result) if isinstance(result, (tuple, list)) else [result]

    likes = [(value.shape, value.is_complex()) for value in tensors]
    return _Trial(run, likes, axes, call.batch_size)


@dataclass(eq=False)
class _Trial:
    """One call with drawn numbers in the places of its tensors.

    Attributes:
        run: the call, on other tensors.
        likes: shape of each tensor, and whether it is complex.
        axes_of_data: the batch axis of each tensor; None for constants.
        batch_size: B.
    """

    run: Callable[[list[Tensor]], list[Tensor]]
    likes: list[tuple[torch.Size, bool]]
    axes_of_data: list[Axis]
    batch_size: int
    numbers: torch.Generator = field(default_factory=lambda: torch.Generator("cpu").manual_seed(0))

    def axes(self) -> list[Axis]:
        """Return the axis of each output."""
        try:
            with torch.autocast("cpu", enabled=False), torch.enable_grad():
                rounds = [self._round() for _ in range(ROUNDS)]
            return [column[0] if len(set(column)) == 1 else None for column in zip(*rounds, strict=True)]
        except REFUSALS:
            return []

    def _round(self) -> list[Axis]:
        """Return the axes that one drawing shows."""
        drawn = [self._draw(shape, is_complex) for shape, is_complex in self.likes]
        whole = self._data(drawn)
        outputs = self.run(whole)
        examples = [self._data(drawn, example) for example in range(self.batch_size)]
        parts = [self.run(values) for values in examples]
        found: list[Axis] = []
        for index, out in enumerate(outputs):
            own = [part[index] for part in parts]
            axis = _axis_of_parts(out, own)
            found.append(axis if axis is not None and self._pulls_back(whole, examples, out, own, axis) else None)
        return found

    def _draw(self, shape: torch.Size, is_complex: bool) -> Tensor:
        dtype = torch.complex128 if is_complex else torch.float64
        return torch.randn(shape, generator=self.numbers, dtype=dtype, device="cpu")

    def _data(self, drawn: list[Tensor], example: int | None = None) -> list[Tensor]:
        """Return the numbers of all examples, or of one alone, at the beginning of a graph; constants as they are."""
        values = []
        for value, axis in zip(drawn, self.axes_of_data, strict=True):
            if axis is not None and example is not None:
                size = value.shape[axis] // self.batch_size
                value = value.narrow(axis, example * size, size)
            values.append(value if axis is None else value.clone().requires_grad_())
        return values

    def _pulls_back(
        self, whole: list[Tensor], examples: list[list[Tensor]], out: Tensor, parts: list[Tensor], axis: int
    ) -> bool:
        """Whether the gradient of an output reaches the rows of its own example, as it does for one example alone."""
        gradient = self._draw(out.shape, out.is_complex())
        data = [index for index, own in enumerate(self.axes_of_data) if own is not None]
        back = _gradients(out, [whole[index] for index in data], gradient)
        size = out.shape[axis] // self.batch_size
        alone = [
            _gradients(part, [values[index] for index in data], gradient.narrow(axis, example * size, size))
            for example, (part, values) in enumerate(zip(parts, examples, strict=True))
        ]
        return all(
            _same(torch.cat([one[at] for one in alone], self.axes_of_data[index] or 0), back[at])
            for at, index in enumerate(data)
        )


def _gradients(out: Tensor, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(out, inputs, gradient, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(value) if part is None else part for value, part in zip(inputs, found, strict=True)]


def _axis_of_parts(out: Tensor, parts: list[Tensor]) -> Axis:
    """Return the axis along which the parts, one behind the other, are the output."""
    if not (out.is_floating_point() or out.is_complex()) or not bool(torch.isfinite(out).all()) or not out.numel():
        return None
    for axis in range(out.ndim):
        shape = [size // len(parts) if at == axis else size for at, size in enumerate(out.shape)]
        if all(list(part.shape) == shape for part in parts) and _same(torch.cat(parts, axis), out):
            return axis
    return None


def _same(joined: Tensor, whole: Tensor) -> bool:
    """Whether two results agree, value by value."""
    if joined.shape != whole.shape:
        return False
    largest = float(whole.detach().abs().amax()) if whole.numel() else 0.0
    return torch.allclose(joined, whole, rtol=TOLERANCE, atol=TOLERANCE * largest)
