"""The mode that sees every torch call of a forward and sends those that use a parameter to their rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hushgrad.capture.axes.rules import changes_in_place, main_argument
from hushgrad.capture.axes.table import INITIALIZERS, LIKE_ANOTHER
from hushgrad.capture.leaves import Leaf, distinct_parameters
from hushgrad.capture.operators.embedding import constant_ids
from hushgrad.capture.operators.generic import generic
from hushgrad.capture.operators.operator import Forward, first_order_only
from hushgrad.capture.operators.table import COMPOSITES, FIRST, RULES
from hushgrad.capture.source_line import calling_forward
from hushgrad.capture.transforms import refuse_transforms, transform_in_force
from hushgrad.errors import HushgradError, UncoveredParameterUseError
from hushgrad.torch_internals import base_of, only_looks

# Attribute reads that return a tensor made of the parameter's values; all others say something about it.
TENSOR_ATTRIBUTES = {getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "real", "imag", "data")}

NODES_TO_LOOK_AT = 100

NUMPY_NAMES = frozenset({"x", "a", "x1", "x2", "axis", "keepdims"})
"""Names that many of torch's operators take in the place of their own, which are not in their signatures."""

MADE_HERE = {"_CapturedBackward", "_GenericBackward", "_GuardBackward", "_UnrolledBackward"}
"""What torch calls the nodes of operators that run as functions of this package."""

HOOKS = {Tensor.register_hook, Tensor.register_post_accumulate_grad_hook}


class CaptureMode(TorchFunctionMode):
    """Sees each call of one outermost forward.

    `is_running` tells whether that forward is still on the stack. Where it is not, and nobody has taken the mode away
    yet, calls pass through untouched. To ask costs a microsecond, so it is asked where the mode would do more than take
    a note: where a parameter is used, a tensor comes from outside, or an error would be raised.
    """

    def __init__(self, call: Forward, is_running: Callable[[], bool]) -> None:
        super().__init__()
        self.call = call
        self._is_running = is_running
        self._over = False

    def end(self) -> None:
        """The forward is over: forget its tensors."""
        self._over = True
        self.call.leaves.clear()
        self.call.axes.clear()
        self.call.held.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one call."""
        kwargs = kwargs or {}
        if self._over:
            return func(*args, **kwargs)
        call = self.call
        leaves: list[Leaf] = []
        sources: list[Tensor] = []
        strangers: list[Tensor] = []
        _sort(call, args, leaves, sources, strangers)
        if kwargs:
            _sort(call, kwargs.values(), leaves, sources, strangers)
        if (leaves or strangers) and self._has_ended():
            return func(*args, **kwargs)
        for value in strangers:
            _require_known_graph(call, value)
            call.axes.adopt(value)
            sources.append(value)
        if func in LIKE_ANOTHER and args:  # the other argument lends its shape or dtype, no values
            leaves = [leaf for leaf in leaves if leaf is call.leaf(args[0])]
            sources = [source for source in sources if source is args[0]]
        for leaf in leaves:
            if leaf.overwritten_by:
                leaf.require_unchanged()
        if func in FIRST and not self._has_ended():
            result = FIRST[func](call, func, args, kwargs)
            if result is not NotImplemented:
                return result
        try:
            if leaves and torch.is_grad_enabled() and not _only_describes(func):
                return self._captured(func, args, kwargs, leaves, sources)
            result = func(*args, **kwargs)
        except RuntimeError as error:
            if not isinstance(error, HushgradError):
                self._explain(func, args, kwargs, leaves)
            raise
        try:
            if func is Tensor.__setitem__:
                call.axes.wrote(*args)
            elif sources:
                call.axes.follow(func, sources, args, kwargs, result)
        except Exception:
            if not self._has_ended():
                raise
        return result

    def _explain(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Leaf]
    ) -> None:
        """Refuse what torch has refused, if it is because operators run as functions of this package here."""
        if leaves and (transform := transform_in_force()) is not None:
            refuse_transforms(transform, leaves[0].name)
        if changes_in_place(func):
            _refuse_change_of_output(func, main_argument(args, kwargs))

    def _has_ended(self) -> bool:
        self._over = not self._is_running()
        return self._over

    def _captured(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        leaves: list[Leaf],
        sources: list[Tensor],
    ) -> Any:
        call = self.call
        if sources:
            if kwargs and not NUMPY_NAMES.isdisjoint(kwargs):
                return generic(call, func, args, kwargs)  # rules know torch's own names
            if func in COMPOSITES:
                with self:  # torch takes the mode off while it runs a call; the parts must be seen
                    result = COMPOSITES[func](call, func, args, kwargs)
                if result is not NotImplemented:
                    return result
            rule = RULES.get(func)
            result = NotImplemented if rule is None else rule(call, func, args, kwargs)
            if result is NotImplemented:
                return generic(call, func, args, kwargs)  # which follows the batch itself
            call.axes.follow(func, sources, args, kwargs, result)
            return result
        if func in HOOKS:
            return _hooked(func, args, kwargs, leaves)
        return derive(call, func, args, kwargs, leaves)


def _refuse_change_of_output(func: Callable[..., Any], target: Any) -> None:
    """Say why torch refused to change a tensor in place, if it is because an operator captured here made it."""
    for made in (target, base_of(target)) if isinstance(target, Tensor) else ():
        if made is not None and made.grad_fn is not None and _name_of(made.grad_fn) in MADE_HERE:
            raise UncoveredParameterUseError(
                f"{func.__name__}: cannot change in place what was computed with a parameter, or a part of it"
                f"{calling_forward()}. Use the form of {func.__name__} that returns a new tensor"
            ) from None


def _hooked(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Leaf]) -> Any:
    """Hooks of `register_multi_grad_hook` only look, as torch's FlopCounterMode does, and here there is nothing to see.

    No gradient comes back through a parameter, or through what was made of parameters alone.
    """
    hook = args[1] if len(args) > 1 else kwargs.get("hook")
    if only_looks(hook):
        return func(*args, **kwargs)
    raise UncoveredParameterUseError(
        f"{func.__name__}: a hook on {leaves[0].name!r}, a parameter or a tensor made of parameters alone, would see "
        f"or change a gradient without noise. Remove the hook"
    )


def _only_describes(func: Callable[..., Any]) -> bool:
    return func.__name__ == "__get__" and func not in TENSOR_ATTRIBUTES


def _sort(call: Forward, values: Any, leaves: list[Leaf], sources: list[Tensor], strangers: list[Tensor]) -> None:
    """Collect the leaves and the data among some arguments, nested ones included.

    A tensor that requires gradients but is neither is a stranger, and counts as data whose examples cannot be told
    apart: to take it for a constant would lose the gradient of whatever it came from.
    """
    known, axes = call.leaves, call.axes
    for value in values:
        if isinstance(value, Tensor):
            leaf = known.get(id(value))
            if leaf is not None:
                leaves.append(leaf)
            elif axes.descends(value):
                sources.append(value)
            elif value.requires_grad:
                strangers.append(value)
        elif isinstance(value, (tuple, list)):
            _sort(call, value, leaves, sources, strangers)


def _require_known_graph(call: Forward, value: Tensor) -> None:
    """Refuse a tensor made from a parameter by what the mode cannot see: a custom autograd function, say.

    Looks at the nearest part of the graph only. A use that is further away leaves an ordinary gradient behind, which
    is refused when the physical batch ends; here it gets its name.
    """
    nodes = [] if value.grad_fn is None else [value.grad_fn]
    for _ in range(NODES_TO_LOOK_AT):
        if not nodes:
            return
        node = nodes.pop(0)
        if _name_of(node) == "torch::autograd::AccumulateGrad":
            leaf = call.leaf(node.variable)  # type: ignore[attr-defined]
            if leaf is not None:
                raise UncoveredParameterUseError(
                    f"{leaf.name}: is used in the forward by {_name_of(value.grad_fn)}, a custom autograd function or "
                    f"compiled code, in which its use cannot be followed. Call what "
                    f"hushgrad.register_operator(the function) returns in its place, write it with torch's own "
                    f"operators, or freeze the parameter (requires_grad_(False))"
                )
        nodes.extend(following for following, _ in node.next_functions if following is not None)


def _name_of(node: Any) -> str:
    """Return what torch calls a node; a custom function may keep a `name` of its own on it, which hides torch's."""
    return type(node).name(node)  # type: ignore[no-any-return]


def derive(
    call: Forward, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Leaf]
) -> Any:
    """Run a call on parameters and constants only; its result is a leaf in its own right."""

    def on_graph(value: Any) -> Any:
        leaf = call.leaf(value)
        if leaf is not None:
            return leaf.graph
        if isinstance(value, (tuple, list)):
            return type(value)(on_graph(part) for part in value)
        return value

    if changes_in_place(func) or kwargs.get("out") is not None:
        return _changed(call, func, args, kwargs, leaves, on_graph)
    result = func(*[on_graph(value) for value in args], **{key: on_graph(value) for key, value in kwargs.items()})
    roots = distinct_parameters(leaves)
    name = f"{func.__name__.strip('_')}({', '.join(root.name for root in roots)})"
    return _as_leaves(call, result, name, roots, constant_ids(call, func, args, kwargs))


def _changed(
    call: Forward,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: list[Leaf],
    on_graph: Callable[[Any], Any],
) -> Any:
    """Run a call that changes a derived parameter in place: the tensor stands for a new leaf from then on.

    Tensors that share its memory are changed with it; what they stand for is not known any more.
    """
    target = main_argument(args, kwargs)
    leaf = call.leaf(target)
    if (
        leaf is None
        or kwargs.get("out") is not None
        or func in INITIALIZERS  # whose writing no graph shows
        or any(_share(leaf, root) for root in leaf.parameters())
    ):
        raise UncoveredParameterUseError(
            f"{func.__name__}: changes parameter {leaves[0].name!r} in place, or writes it into another tensor, inside "
            f"the forward. Compute a new tensor instead (torch.cat, torch.stack, torch.where)"
        )
    graph = leaf.graph.clone()
    if args:
        args, others = (graph, *[on_graph(value) for value in args[1:]]), kwargs
    else:
        others = {key: graph if value is target else value for key, value in kwargs.items()}
    func(*args, **{key: on_graph(value) for key, value in others.items()})
    for key, other in call.leaves.items():
        if other is not leaf and _share(leaf, other):
            call.leaves[key] = replace(other, overwritten_by=func.__name__)
    with torch.no_grad():
        target.copy_(graph)
    call.leaves[id(target)] = Leaf(leaf.name, graph.detach(), graph, distinct_parameters(leaves))
    return None if func is Tensor.__setitem__ else target


def _share(leaf: Leaf, other: Leaf) -> bool:
    return leaf.value.untyped_storage().data_ptr() == other.value.untyped_storage().data_ptr()


def _as_leaves(call: Forward, result: Any, name: str, roots: tuple[Leaf, ...], ids: Tensor | None = None) -> Any:
    if isinstance(result, Tensor):
        if not result.requires_grad:
            return result
        if result.layout != torch.strided:
            raise UncoveredParameterUseError(
                f"{name}: makes a sparse tensor of a parameter, in which its use cannot be followed. Write the values "
                f"into a dense tensor (torch.zeros(...).index_put(indices, values)), or freeze the parameter"
            )
        value = result.detach()
        public = _Guard.apply(value, call.anchor.tensor, name)  # type: ignore[no-untyped-call]
        call.leaves[id(public)] = Leaf(name, value, result, roots, ids)
        call.held.append(public)
        return public
    if isinstance(result, (tuple, list)):
        return type(result)(_as_leaves(call, part, name, roots) for part in result)
    if result is None or isinstance(result, (bool, int, float, str, torch.dtype, torch.device)):
        return result
    raise UncoveredParameterUseError(f"{name}: returned a {type(result).__name__}, in which its use cannot be followed")


class _Guard(torch.autograd.Function):
    """A derived parameter as the user's code holds it. Captured uses never come back through it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, name: str) -> Tensor:
        ctx.leaf_name = name
        return value.view_as(value)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        raise UncoveredParameterUseError(
            f"{ctx.leaf_name}: a tensor computed from parameters alone reached the loss outside the model's forward, "
            f"or without ever meeting the batch (a weight penalty, say), so it has no per-example gradient. Use it "
            f"inside the forward together with data, or replace a penalty by the optimizer's weight_decay. Where it "
            f"did meet the batch, hand that to the model as tensors (in tuples, dictionaries or dataclasses), and "
            f"compute from it by torch's own operators, in no scripted or traced part"
        )
