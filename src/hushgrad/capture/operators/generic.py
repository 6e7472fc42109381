"""Any operator without a rule: its per-example gradients by a batched vector-Jacobian product of that one call.

The call runs as it is. In backward its examples are told apart in one of two exact ways:

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
from torch.autograd.function import once_differentiable
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hushgrad.capture.leaves import Leaf, batched_vjp, distinct_parameters
from hushgrad.capture.operators.operator import Forward
from hushgrad.errors import PrivacyUnitError
from hushgrad.gradients.contribution import Contribution, accumulation_dtype
from hushgrad.gradients.dense import Dense


@dataclass(frozen=True, eq=False)
class _Call:
    """A call with its leaves and data taken out, so that it can be run again on other values."""

    func: Callable[..., Any]
    flat: list[Any]
    spec: TreeSpec
    leaves: dict[int, Leaf]
    data: dict[int, Tensor]
    data_axes: dict[int, int | None]

    def run(self, leaf_values: Sequence[Tensor], data_values: Sequence[Tensor]) -> Any:
        """Run the call with other values in the places of the leaves and of the data."""
        flat = list(self.flat)
        for place, value in zip(self.leaves, leaf_values, strict=True):
            flat[place] = value
        for place, value in zip(self.data, data_values, strict=True):
            flat[place] = value
        args, kwargs = tree_unflatten(flat, self.spec)
        return self.func(*args, **kwargs)


@dataclass(eq=False)
class _Graph:
    """The local graph of one call: from parameters and detached data to the floating outputs."""

    call: _Call
    data: list[Tensor]
    outputs: list[Tensor]
    axes: list[int | None]
    name: str
    recorded_by_slices: bool = False


def generic(call: Forward, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call that takes leaves and data; record its use whatever the operator is."""
    flat, spec = tree_flatten((args, kwargs))
    leaves = {place: leaf for place, value in enumerate(flat) if (leaf := call.leaf(value)) is not None}
    data = {
        place: value
        for place, value in enumerate(flat)
        if isinstance(value, Tensor) and place not in leaves and (call.axes.descends(value) or value.requires_grad)
    }
    one_call = _Call(func, flat, spec, leaves, data, {place: call.axes.get(value) for place, value in data.items()})
    local = [value.detach().requires_grad_(value.requires_grad) for value in data.values()]
    with torch.enable_grad():
        result = one_call.run([leaf.graph for leaf in leaves.values()], local)
    outputs, result_spec = tree_flatten(result)
    taken = [place for place, out in enumerate(outputs) if isinstance(out, Tensor) and out.requires_grad]
    if not taken:
        return result
    names = ", ".join(leaf.name for leaf in leaves.values())
    name = f"{func.__name__}({names})"
    sources = [value for value in data.values() if call.axes.descends(value)]
    for place in taken:
        call.axes.follow(func, sources, args, kwargs, outputs[place])
    axes = [call.axes.get(outputs[place]) for place in taken]
    graph = _Graph(one_call, local, [outputs[place] for place in taken], axes, name)
    public = _Generic.apply(graph, call, call.anchor.tensor, *data.values())  # type: ignore[no-untyped-call]
    for place, out in zip(taken, public, strict=True):
        outputs[place] = out
    return tree_unflatten(outputs, result_spec)


class _Generic(torch.autograd.Function):
    """Hands out the call's outputs; in backward walks the local graph and records."""

    @staticmethod
    def forward(ctx: Any, graph: _Graph, call: Forward, anchor: Tensor, *data: Tensor) -> tuple[Tensor, ...]:
        ctx.graph, ctx.call = graph, call
        ctx.set_materialize_grads(False)
        return tuple(out.detach() for out in graph.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        graph, call = ctx.graph, ctx.call
        reached = [place for place, gradient in enumerate(gradients) if gradient is not None]
        if reached and call.anchor.is_accumulating():
            call.check_batch(graph.name)
            for name, part in _record(graph, call, reached, [gradients[place] for place in reached]):
                call.pool.add(name, part)
        found: list[Tensor | None] = [None] * len(graph.data)
        wanted = [place for place, value in enumerate(graph.data) if value.requires_grad]
        if wanted and reached:
            back = torch.autograd.grad(
                [graph.outputs[place] for place in reached],
                [graph.data[place] for place in wanted],
                [gradients[place] for place in reached],
                retain_graph=True,
                allow_unused=True,
            )
            for place, gradient in zip(wanted, back, strict=True):
                found[place] = gradient
        return (None, None, None, *found)


def _record(graph: _Graph, call: Forward, reached: list[int], gradients: list[Any]) -> list[tuple[str, Contribution]]:
    batch = call.pool.batch_size
    for place, gradient in zip(reached, gradients, strict=True):
        # The pool's own check of rows against records, with its message.
        call.pool.examples(gradient, graph.axes[place], graph.name)
        axis = graph.axes[place]
        if axis is None or gradient.shape[axis] % (batch or 1):
            raise PrivacyUnitError(f"{graph.name}: cannot tell the examples apart in its output")
    if len(graph.outputs) == 1 and reached == [0]:
        by_slices = _by_slices(graph, call, gradients[0])
        if by_slices is not None:
            return by_slices
    return _by_masks(graph, call, reached, gradients)


def _by_slices(graph: _Graph, call: Forward, gradient: Tensor) -> list[tuple[str, Contribution]] | None:
    """Per-example gradients from running the call on slices; None where that does not reproduce its output."""
    batch, output, axis = call.pool.batch_size, graph.outputs[0], graph.axes[0]
    axes = list(graph.call.data_axes.values())
    if batch is None or axis is None or any(part is None for part in axes):
        return None
    if any(value.shape[part] != batch for value, part in zip(graph.data, axes, strict=True)):
        return None
    if output.shape[axis] != batch:
        return None
    leaves = list(graph.call.leaves.values())

    def one(gradient_i: Tensor, *data_i: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows = [value.unsqueeze(part) for value, part in zip(data_i, axes, strict=True)]
        result, pull = torch.func.vjp(lambda *values: graph.call.run(values, rows), *[leaf.value for leaf in leaves])
        return result.squeeze(axis), pull(gradient_i.unsqueeze(axis))

    detached = [value.detach() for value in graph.data]
    try:
        again, found = torch.func.vmap(one, in_dims=(axis, *axes), out_dims=(axis, 0))(gradient, *detached)
    except (RuntimeError, ValueError, NotImplementedError):
        return None
    if not torch.allclose(again, output, rtol=1e-4, atol=1e-5 * float(output.detach().abs().amax()), equal_nan=True):
        return None
    parts: list[tuple[str, Contribution]] = []
    for leaf, gradients in zip(leaves, found, strict=True):
        parts.extend(leaf.to_parameters(Dense(gradients.to(accumulation_dtype(gradients.dtype)))))
    return parts


def _by_masks(
    graph: _Graph, call: Forward, reached: list[int], gradients: list[Tensor]
) -> list[tuple[str, Contribution]]:
    """Per-example gradients from the recorded graph, one example's output gradient at a time."""
    parameters = distinct_parameters(list(graph.call.leaves.values()))
    batch = call.pool.batch_size
    assert batch is not None
    parts: list[tuple[str, Contribution]] = []
    for place, gradient in zip(reached, gradients, strict=True):
        axis = graph.axes[place]
        assert axis is not None
        per_example: list[list[Tensor]] = [[] for _ in parameters]
        block = gradient.shape[axis] // batch
        for i in range(batch):
            masked = torch.zeros_like(gradient)
            masked.narrow(axis, i * block, block).copy_(gradient.narrow(axis, i * block, block))
            for column, (_, part) in zip(
                per_example, batched_vjp(graph.outputs[place], parameters, masked.unsqueeze(0)), strict=True
            ):
                column.append(part.per_example())
        parts.extend(
            (leaf.name, Dense(torch.cat(column))) for leaf, column in zip(parameters, per_example, strict=True)
        )
    return parts
