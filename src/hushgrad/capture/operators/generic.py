"""Any operator without a rule: its per-example gradients by vector-Jacobian products of that one call.

A worked example: `F.bilinear(x, y, W)` with x `[B, d]`, y `[B, e]` and W `[p, d, e]` a parameter.

    forward    the call runs on x and y detached and on the leaf's own graph: a *local graph* from W to the output
               [B, p]. What the model gets is that output behind an autograd function, with an edge to x and y.
    backward   the gradient G [B, p] of the output comes. Example i's gradient of W is the local graph's product with
               G where all rows but i are 0, so B products would do (*masks*). Where running the call on x[i:i+1] and
               y[i:i+1] gives row i of its output, one vectorised product over all i does it (*slices*).
               Either way [B, p, d, e] is recorded for W, and x and y get the call's ordinary gradients.

Which of the two it is, `replay.py` decides, by comparing outputs. If W is derived (`V.t()`), what is recorded for it is
carried on to V by a product of the derivation (`leaves.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.owners import Whole
from hushgrad.capture.axes.rules import changes_in_place
from hushgrad.capture.axes.table import AXIS_RULES
from hushgrad.capture.operators.operator import ForwardContext, Recorded, autocast_dtype, first_order_only
from hushgrad.capture.operators.replay import LocalGraph, RandomState, Replay, measured_axis, per_example_gradients
from hushgrad.errors import UncoveredParameterUseError
from hushgrad.torch_internals import tree_flatten, tree_unflatten


def generic(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call that takes leaves and data; record its use whatever the operator is.

    Raises:
        UncoveredParameterUseError: the call writes into one of its arguments.
    """
    flat, spec = tree_flatten((args, kwargs))
    leaves = {position: leaf for position, value in enumerate(flat) if (leaf := context.leaf(value)) is not None}
    name = f"{func.__name__}({', '.join(leaf.name for leaf in leaves.values())})"
    if changes_in_place(func) or kwargs.get("out") is not None:
        raise UncoveredParameterUseError(
            "writes in place what it computes from a parameter, so its gradient cannot be followed",
            where=name,
            cure="Use the form of the operator that returns a new tensor",
        )
    data = {position: value for position, value in enumerate(flat) if position not in leaves and context.is_data(value)}
    axes_of_data = {position: context.axes.get(value) for position, value in data.items()}
    replay = Replay(func, flat, spec, leaves, data, axes_of_data, autocast_dtype(next(iter(data.values()))))
    local = [value.detach().requires_grad_(value.requires_grad) for value in data.values()]
    random_state = RandomState.of(local)
    with torch.enable_grad():
        result = replay.run([leaf.graph for leaf in leaves.values()], local)
    outputs, result_spec = tree_flatten(result)
    taken = [position for position, out in enumerate(outputs) if isinstance(out, Tensor) and out.requires_grad]
    measured = None
    if taken and len(outputs) == 1 and func not in AXIS_RULES:
        measured = measured_axis(replay, context.batch_size, outputs[0])
    if measured is None:
        context.axes.follow(func, list(data.values()), args, kwargs, result)
    else:
        context.axes.set(outputs[0], measured)
    if not taken:
        return result
    axes = [_told(context, outputs[position]) for position in taken]
    context.announce(leaves.values(), (*local, *(outputs[position] for position in taken)))
    graph = LocalGraph(replay, local, [outputs[position] for position in taken], axes, name, random_state)
    public = _Generic.apply(graph, context, context.anchor.tensor, *data.values())  # type: ignore[no-untyped-call]
    for position, out, axis in zip(taken, public, axes, strict=True):
        outputs[position] = out
        context.axes.set(out, axis)
    return tree_unflatten(outputs, result_spec)


def _told(context: ForwardContext, out: Tensor) -> int | Whole | None:
    """Return where the batch lies in an output whose examples can be told apart here; None in rows with owners."""
    location = context.axes.location(out)
    return location if isinstance(location, (int, Whole)) else None


class _Generic(torch.autograd.Function):
    """Hands out the call's outputs; in backward walks the local graph and records."""

    @staticmethod
    def forward(
        ctx: Any, graph: LocalGraph, context: ForwardContext, anchor: Tensor, *data: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.graph, ctx.context = graph, context
        ctx.set_materialize_grads(False)
        return tuple(out.detach() for out in graph.outputs)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        graph, context = ctx.graph, ctx.context
        reached = [position for position, gradient in enumerate(gradients) if gradient is not None]
        present = [gradient for gradient in gradients if gradient is not None]
        axes = [graph.axes[position] for position in reached]

        def uses() -> Recorded:
            for axis, gradient in zip(axes, present, strict=True):
                context.pool.examples(gradient, axis, graph.name)  # refuses rows that are not the batch's
            return per_example_gradients(graph, context.pool.batch_size, reached, present)

        if reached:
            context.record(graph.name, axes, uses)
        found: list[Tensor | None] = [None] * len(graph.data)
        wanted = [position for position, value in enumerate(graph.data) if value.requires_grad]
        if wanted and reached:
            outputs = [graph.outputs[position] for position in reached]
            inputs = [graph.data[position] for position in wanted]
            back = torch.autograd.grad(outputs, inputs, present, retain_graph=True, allow_unused=True)
            for position, gradient in zip(wanted, back, strict=True):
                found[position] = gradient
        return (None, None, None, *found)
