"""Tensors made of parameters alone: each is a leaf in its own right, with a graph down to the parameters.

With a weight `[p, d]`: `w.T` is a leaf `[d, p]`. In `x @ w.T` the captured product records per-example gradients of
that leaf, `[B, d, p]`, and a batched vector-Jacobian product of the transpose carries them back to `w`, `[B, p, d]`.
What the user's code holds is a stand-in with the same values, whose own backward raises: whatever reaches the loss by
it was not captured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.rules import changes_in_place, main_argument
from hushgrad.capture.axes.table import INITIALIZERS
from hushgrad.capture.leaves import TrackedTensor, distinct_parameters
from hushgrad.capture.operators.embedding import constant_ids
from hushgrad.capture.operators.operator import ForwardContext, first_order_only
from hushgrad.errors import UncoveredParameterUseError
from hushgrad.torch_internals import base_of


def derive(
    context: ForwardContext,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: list[TrackedTensor],
) -> Any:
    """Run a call on parameters and constants only; its result is a leaf in its own right."""
    if changes_in_place(func) or kwargs.get("out") is not None:
        return _changed(context, func, args, kwargs, leaves)
    named = {key: _on_graph(context, value) for key, value in kwargs.items()}
    result = func(*[_on_graph(context, value) for value in args], **named)
    roots = distinct_parameters(leaves)
    return _as_leaves(context, result, _name_of(func, roots), roots, constant_ids(context, func, args, kwargs))


def _on_graph(context: ForwardContext, value: Any) -> Any:
    """Return what stands for leaves in their own graphs. No closure that names itself: it would outlive the forward."""
    leaf = context.leaf(value)
    if leaf is not None:
        return leaf.graph
    if isinstance(value, (tuple, list)):
        return type(value)(_on_graph(context, part) for part in value)
    return value


def _name_of(func: Callable[..., Any], roots: Sequence[TrackedTensor]) -> str:
    return f"{func.__name__.strip('_')}({', '.join(root.name for root in roots)})"


def _changed(
    context: ForwardContext,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: list[TrackedTensor],
) -> Any:
    """Run a call that changes a derived parameter in place: the tensor stands for a new leaf from then on.

    Tensors that share its memory are changed with it; what they stand for is not known any more.
    """
    target = main_argument(args, kwargs)
    leaf = context.leaf(target)
    if leaf is None and _is_own_constant(context, target) and kwargs.get("out") is None and func not in INITIALIZERS:
        return _written(context, func, args, kwargs, leaves)
    if (
        leaf is None
        or kwargs.get("out") is not None
        or func in INITIALIZERS  # whose writing no graph shows
        or any(_share(leaf.value, root.value) for root in leaf.parameters())
    ):
        raise UncoveredParameterUseError(
            f"changes parameter {leaves[0].name!r} in place inside the forward, or writes it into another tensor",
            where=func.__name__,
            cure="Compute a new tensor instead (torch.cat, torch.stack, torch.where)",
        )
    graph = leaf.graph.clone()
    if args:
        args, others = (graph, *[_on_graph(context, value) for value in args[1:]]), kwargs
    else:
        others = {key: graph if value is target else value for key, value in kwargs.items()}
    func(*args, **{key: _on_graph(context, value) for key, value in others.items()})
    for key, other in context.leaves.items():
        if other is not leaf and _share(leaf.value, other.value):
            context.leaves[key] = replace(other, overwritten_by=func.__name__)
    with torch.no_grad():
        target.copy_(graph)
    context.leaves[id(target)] = TrackedTensor(leaf.name, graph.detach(), graph, distinct_parameters(leaves))
    return None if func is Tensor.__setitem__ else target


def _is_own_constant(context: ForwardContext, target: Any) -> bool:
    """Whether a tensor holds neither data nor gradients, and its memory is that of no parameter."""
    if not isinstance(target, Tensor) or target.requires_grad or context.is_data(target):
        return False
    is_plain = target.layout == torch.strided and base_of(target) is None
    return is_plain and not any(_share(target, leaf.value) for leaf in context.leaves.values())


def _written(
    context: ForwardContext,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: list[TrackedTensor],
) -> Any:
    """Run a call that writes parameters into a tensor of constants, which is a derived parameter from then on.

    The call itself runs, too. Whoever reaches the loss by the tensor, or by another view of its memory, comes to the
    stand-in of what was written, or to the parameter, and is refused there.
    """
    target = main_argument(args, kwargs)
    graph = target.clone()
    on_copy = {id(target): graph}
    own = [on_copy.get(id(value), _on_graph(context, value)) for value in args]
    func(*own, **{key: on_copy.get(id(value), _on_graph(context, value)) for key, value in kwargs.items()})
    if not graph.requires_grad:
        raise UncoveredParameterUseError(
            f"writes parameter {leaves[0].name!r} into a tensor where no gradient follows it",
            where=func.__name__,
            cure="Compute a new tensor instead (torch.cat, torch.stack, torch.where)",
        )
    result = func(*args, **kwargs)
    roots = distinct_parameters(leaves)
    context.leaves[id(target)] = TrackedTensor(_name_of(func, roots), graph.detach(), graph, roots)
    context.held.append(target)
    return result


def _share(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _as_leaves(
    context: ForwardContext, result: Any, name: str, roots: tuple[TrackedTensor, ...], ids: Tensor | None = None
) -> Any:
    if isinstance(result, Tensor):
        if not result.requires_grad:
            return result
        if result.layout == torch.sparse_coo:
            result = result.to_dense()  # what only sparse tensors have is answered for it: operators/sparse.py
        if result.layout != torch.strided:
            raise UncoveredParameterUseError(
                "makes a sparse tensor of a parameter, which hides how it is used",
                where=name,
                cure="Write the values into a dense tensor (torch.zeros(...).index_put(indices, values)), or freeze "
                "the parameter",
            )
        value = result.detach()
        public = _Guard.apply(value, context.anchor.tensor, name, context)  # type: ignore[no-untyped-call]
        context.leaves[id(public)] = TrackedTensor(name, value, result, roots, ids)
        context.held.append(public)
        return public
    if isinstance(result, (tuple, list)):
        return type(result)(_as_leaves(context, part, name, roots) for part in result)
    if result is None or isinstance(result, (bool, int, float, str, torch.dtype, torch.device)):
        return result
    raise UncoveredParameterUseError(
        f"returned an object of class {type(result).__name__}, which hides how the parameter is used",
        where=name,
        cure="Use operators that return tensors, or freeze the parameter (requires_grad_(False))",
    )


class _Guard(torch.autograd.Function):
    """A derived parameter as the user's code holds it. Captured uses never come back through it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, name: str, context: ForwardContext) -> Tensor:
        ctx.leaf_name, ctx.context = name, context
        return value.view_as(value)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        raise UncoveredParameterUseError(
            "a tensor computed from parameters alone reached the loss outside the model's forward, or without ever "
            "meeting the batch, so it has no per-example gradient",
            where=ctx.leaf_name,
            cure=ctx.context.hidden_line
            or "Use it inside the forward together with data. Replace a weight penalty by the optimizer's "
            "weight_decay, or declare it: session.regularizer(fn, weight=...). If it did meet the batch, as texts or "
            "lists of numbers, pass these to the model as tensors (in tuples, dictionaries or dataclasses), and use "
            "torch's own operators there, not a scripted or traced part",
        )
