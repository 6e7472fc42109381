"""Running one call again, to tell its examples apart in one of two exact ways.

- *slices*: the call is run again on each example's slice of the data, vectorised. Taken only where this reproduces the
  output of the call, so an operator that mixes examples, or draws random numbers, never goes this way.
- *masks*: the recorded graph of the call is walked back once per example with the output gradients of all other
  examples set to zero. Always exact, and as many times as expensive as there are examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.owners import Whole
from hushgrad.capture.leaves import TrackedTensor, batched_vjp, distinct_parameters
from hushgrad.gradients.contribution import Contribution, accumulation_dtype
from hushgrad.gradients.dense import Dense
from hushgrad.torch_internals import TreeSpec, tree_leaves, tree_unflatten

# What torch raises where an operator cannot be vectorised, or draws random numbers.
NOT_VECTORISABLE = (RuntimeError, ValueError, NotImplementedError, TypeError, IndexError)


@dataclass(frozen=True, eq=False)
class Replay:
    """A call with its leaves and data taken out, so that it can be run again on other values.

    `autocast` is the dtype of the autocast that the call ran under, if any.
    """

    func: Callable[..., Any]
    flat: list[Any]
    spec: TreeSpec
    leaves: dict[int, TrackedTensor]
    data: dict[int, Tensor]
    data_axes: dict[int, int | None]
    autocast: torch.dtype | None

    def run(self, leaf_values: Sequence[Tensor], data_values: Sequence[Tensor]) -> Any:
        """Run the call with other values in the places of the leaves and of the data."""
        flat = list(self.flat)
        for position, value in zip(self.leaves, leaf_values, strict=True):
            flat[position] = value
        for position, value in zip(self.data, data_values, strict=True):
            flat[position] = value
        args, kwargs = tree_unflatten(flat, self.spec)
        device = next(value.device.type for value in self.data.values())
        with torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None):
            return self.func(*args, **kwargs)

    def known_axes(self) -> list[int] | None:
        """Return the batch axes of the data; None if one of them is unknown."""
        axes = [axis for axis in self.data_axes.values() if axis is not None]
        return axes if len(axes) == len(self.data_axes) else None

    def has_slices(self, batch_size: int | None) -> bool:
        """Return whether the data can be cut into one slice for each example."""
        axes = self.known_axes()
        return axes is not None and all(
            value.shape[axis] == batch_size for value, axis in zip(self.data.values(), axes, strict=True)
        )


@dataclass(frozen=True)
class RandomState:
    """The state of torch's generators before a call, so that the call can be run again with the same draws."""

    cpu: Tensor
    cuda: dict[int, Tensor]

    @classmethod
    def of(cls, values: Sequence[Tensor]) -> RandomState:
        """Take the state of the generators that a call on these values may draw from."""
        devices = {value.device.index for value in values if value.is_cuda}
        return cls(torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices})

    def again(self, run: Callable[[], Any]) -> Any:
        """Run a function from this state on and put the generators back afterwards."""
        with torch.random.fork_rng(devices=list(self.cuda)):
            torch.set_rng_state(self.cpu)
            for device, state in self.cuda.items():
                torch.cuda.set_rng_state(state, device)
            return run()


@dataclass(frozen=True, eq=False)
class LocalGraph:
    """The graph of one call: from parameters and detached data to those outputs that require gradients."""

    replay: Replay
    data: list[Tensor]
    outputs: list[Tensor]
    axes: list[int | Whole | None]
    name: str
    random_state: RandomState


def measured_axis(replay: Replay, batch_size: int | None, output: Tensor) -> int | None:
    """Return the only axis along which the call on each example's slice gives that example's part of the output.

    For operators that no axis rule knows. None when there is no such axis, or more than one.
    """
    axes = replay.known_axes()
    if axes is None or batch_size is None or not replay.has_slices(batch_size):
        return None
    values = [leaf.value for leaf in replay.leaves.values()]

    def one(*data_i: Tensor) -> Tensor:
        rows = [value.unsqueeze(axis) for value, axis in zip(data_i, axes, strict=True)]
        return replay.run(values, rows)  # type: ignore[no-any-return]

    try:
        with torch.no_grad():
            parts = torch.func.vmap(one, in_dims=tuple(axes))(*[value.detach() for value in replay.data.values()])
    except NOT_VECTORISABLE:
        return None
    if not isinstance(parts, Tensor) or parts.ndim != output.ndim + 1:
        return None
    found = [
        axis
        for axis in range(output.ndim)
        if parts.shape[axis + 1] == 1 and _same(parts.squeeze(axis + 1).movedim(0, axis), output)
    ]
    return found[0] if len(found) == 1 or (found and batch_size == 1) else None


def per_example_gradients(
    graph: LocalGraph, batch_size: int | None, reached: list[int], gradients: list[Tensor]
) -> list[tuple[TrackedTensor, Contribution]]:
    """Return contributions to the call's leaves or their parameters, given gradients of the outputs reached."""
    assert batch_size is not None
    if isinstance(graph.axes[reached[0]], Whole):
        return _of_one_example(graph, batch_size, reached, gradients)
    if len(graph.outputs) == 1 and reached == [0]:
        by_slices = _by_slices(graph, batch_size, gradients[0])
        if by_slices is not None:
            return by_slices
    return _by_masks(graph, batch_size, reached, gradients)


def _of_one_example(
    graph: LocalGraph, batch_size: int, reached: list[int], gradients: list[Tensor]
) -> list[tuple[TrackedTensor, Contribution]]:
    """Per-example gradients of a call on one example alone: those of all others are zero."""
    parameters = distinct_parameters(list(graph.replay.leaves.values()))
    found: dict[str, Tensor] = {}
    for position, gradient in zip(reached, gradients, strict=True):
        location = graph.axes[position]
        assert isinstance(location, Whole)
        for name, part in batched_vjp(graph.outputs[position], parameters, gradient.unsqueeze(0)):
            alone = location.blocks(part.per_example()[0], batch_size)
            found[name] = alone if name not in found else found[name] + alone
    return [(leaf, Dense(found[leaf.name])) for leaf in parameters]


def _by_slices(graph: LocalGraph, batch_size: int, gradient: Tensor) -> list[tuple[TrackedTensor, Contribution]] | None:
    """Per-example gradients from running the call on slices; None where that does not reproduce its output."""
    output, axis, axes = graph.outputs[0], graph.axes[0], graph.replay.known_axes()
    if (
        not isinstance(axis, int)
        or axes is None
        or not graph.replay.has_slices(batch_size)
        or output.shape[axis] != batch_size
    ):
        return None
    leaves = list(graph.replay.leaves.values())
    values = [leaf.value for leaf in leaves]

    def one(gradient_i: Tensor, *data_i: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows = [value.unsqueeze(part) for value, part in zip(data_i, axes, strict=True)]
        result, pull = torch.func.vjp(  # type: ignore[misc]  # two values without has_aux
            lambda *parameters: _only_tensor(graph.replay.run(parameters, rows)), *values
        )
        return result.squeeze(axis), pull(gradient_i.unsqueeze(axis))

    detached = [value.detach() for value in graph.data]
    try:
        again, found = torch.func.vmap(one, in_dims=(axis, *axes), out_dims=(axis, 0))(gradient, *detached)
    except NOT_VECTORISABLE:
        return None
    if not _same(again, output):
        return None
    return [
        (leaf, Dense(gradients.to(accumulation_dtype(gradients.dtype))))
        for leaf, gradients in zip(leaves, found, strict=True)
    ]


def _only_tensor(result: Any) -> Tensor:
    (output,) = (value for value in tree_leaves(result) if isinstance(value, Tensor))
    return output


def _same(again: Tensor, output: Tensor) -> bool:
    """Whether a call on slices gave what the call gave; values that are not finite set no tolerance."""
    if again.shape != output.shape:
        return False
    values = output.detach()
    largest = float(values.nan_to_num(0, 0, 0).abs().amax()) if values.numel() else 0.0
    return torch.allclose(again.to(values.dtype), values, rtol=1e-4, atol=1e-5 * largest, equal_nan=True)


def _by_masks(
    graph: LocalGraph, batch_size: int, reached: list[int], gradients: list[Tensor]
) -> list[tuple[TrackedTensor, Contribution]]:
    """Per-example gradients from the recorded graph, one example's output gradient at a time.

    A value that is not finite would reach every example (0 × Inf is NaN). The call is then run again with other rows in
    the place of those of the examples it comes from, and these examples alone get a gradient that is not finite.
    """
    parameters = distinct_parameters(list(graph.replay.leaves.values()))
    axes = [axis for position in reached if isinstance(axis := graph.axes[position], int)]
    outputs = [graph.outputs[position] for position in reached]
    found = _masked(parameters, outputs, axes, gradients, batch_size)
    if not all(bool(torch.isfinite(column).all()) for column in found):
        broken_B = _not_finite(graph, batch_size, outputs, axes, gradients)
        found = [column.clone() for column in found]
        if broken_B.any() and not broken_B.all():
            clean = _without(graph, broken_B, batch_size)
            quiet = [_filled(gradient, axis, broken_B) for gradient, axis in zip(gradients, axes, strict=True)]
            found = _masked(parameters, [clean[position] for position in reached], axes, quiet, batch_size)
        for column in found:
            column[broken_B] = torch.nan
    return [(leaf, Dense(column)) for leaf, column in zip(parameters, found, strict=True)]


def _masked(
    parameters: Sequence[TrackedTensor],
    outputs: list[Tensor],
    axes: list[int],
    gradients: list[Tensor],
    batch_size: int,
) -> list[Tensor]:
    """Return gradients `[B, *shape]` of each parameter, summed over the outputs."""
    rows: list[list[Tensor]] = [[] for _ in parameters]
    for i in range(batch_size):
        totals: list[Tensor] | None = None
        for output, axis, gradient in zip(outputs, axes, gradients, strict=True):
            block = gradient.shape[axis] // batch_size
            masked = torch.zeros_like(gradient)
            masked.narrow(axis, i * block, block).copy_(gradient.narrow(axis, i * block, block))
            pulled = [part.per_example() for _, part in batched_vjp(output, parameters, masked.unsqueeze(0))]
            totals = pulled if totals is None else [a + b for a, b in zip(totals, pulled, strict=True)]
        for column, total in zip(rows, totals or [], strict=True):
            column.append(total)
    return [torch.cat(column) for column in rows]


def _not_finite(
    graph: LocalGraph, batch_size: int, outputs: list[Tensor], axes: list[int], gradients: list[Tensor]
) -> Tensor:
    """Return which examples hold a value that is not finite in their data, outputs or output gradients, `[B]`."""
    known = graph.replay.known_axes() or []
    broken_B = torch.zeros(batch_size, dtype=torch.bool, device=outputs[0].device)
    for value, axis in [
        *zip(graph.data, known, strict=True),
        *zip(outputs, axes, strict=True),
        *zip(gradients, axes, strict=True),
    ]:
        broken_B |= ~torch.isfinite(value.detach().movedim(axis, 0).reshape(batch_size, -1)).all(1)
    return broken_B


def _without(graph: LocalGraph, broken_B: Tensor, batch_size: int) -> list[Tensor]:
    """Run the call again with the rows of a sound example in the place of broken ones."""
    rows_B = torch.arange(batch_size, device=broken_B.device)
    rows_B = torch.where(broken_B, rows_B[~broken_B][0], rows_B)
    data = []
    for value, axis in zip(graph.data, graph.replay.known_axes() or [], strict=True):
        blocks = value.detach().movedim(axis, 0)
        shape = blocks.shape
        data.append(blocks.reshape(batch_size, -1)[rows_B].reshape(shape).movedim(0, axis))
    values = [leaf.graph for leaf in graph.replay.leaves.values()]
    with torch.enable_grad():
        result = graph.random_state.again(lambda: graph.replay.run(values, data))
    return [value for value in tree_leaves(result) if isinstance(value, Tensor) and value.requires_grad]


def _filled(gradient: Tensor, axis: int, broken_B: Tensor) -> Tensor:
    rows = broken_B.repeat_interleave(gradient.shape[axis] // broken_B.shape[0])
    return gradient.masked_fill(rows.reshape([-1 if dim == axis else 1 for dim in range(gradient.ndim)]), 0)
