"""The mode that sees every torch call of a forward and sends those that use a parameter to their rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hushgrad.capture.axes.rules import changes_in_place, main_argument
from hushgrad.capture.axes.table import LIKE_ANOTHER
from hushgrad.capture.consultation import only_describes, with_data, without_data
from hushgrad.capture.leaves import TrackedTensor
from hushgrad.capture.operators.operator import ForwardContext
from hushgrad.capture.operators.table import FIRST
from hushgrad.capture.source_line import calling_forward, registration_line, running_function
from hushgrad.capture.transforms import refuse_transforms, transform_in_force
from hushgrad.errors import HushgradError, UncoveredParameterUseError
from hushgrad.torch_internals import base_of, function_of
from hushgrad.torch_sharding import is_hook_of_fsdp

NODES_TO_LOOK_AT = 100

_GRAD_FN: Any = Tensor.grad_fn
HOOKING = frozenset({Tensor.register_hook, _GRAD_FN.__get__})
"""What hangs a hook on a gradient, or gets at the node to hang one on."""

PACKAGE = __name__.rpartition(".")[0]


class CaptureMode(TorchFunctionMode):
    """Sees each call of one outermost forward.

    `is_running` tells whether that forward is still on the stack. Where it is not, and nobody has taken the mode away
    yet, calls pass through untouched. To ask costs a microsecond, so it is asked where the mode would do more than take
    a note: where a parameter is used, a tensor comes from outside, or an error would be raised.
    """

    def __init__(self, context: ForwardContext, is_running: Callable[[], bool]) -> None:
        super().__init__()
        self.context = context
        self._is_running = is_running
        self._over = False

    def end(self) -> None:
        """The forward is over: forget its tensors."""
        self._over = True
        self.context.leaves.clear()
        self.context.axes.clear()
        self.context.held.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one call."""
        kwargs = kwargs or {}
        if self._over:
            return func(*args, **kwargs)
        context = self.context
        conversions = context.axes.conversions
        if conversions is not None and not torch.is_grad_enabled() and (running := conversions.source()) is not None:
            result = func(*args, **kwargs)
            conversions.made(running, result)
            return result
        leaves: list[TrackedTensor] = []
        sources: list[Tensor] = []
        strangers: list[Tensor] = []
        _sort(context, args, leaves, sources, strangers)
        if kwargs:
            _sort(context, kwargs.values(), leaves, sources, strangers)
        if (leaves or strangers) and self._has_ended():
            return func(*args, **kwargs)
        if func in HOOKING and not any(map(is_hook_of_fsdp, args[1:])):
            context.hangs_hooks = True
        for value in strangers:
            if _is_read_without_gradients(context, value):
                continue
            _require_known_graph(context, value)
            context.axes.adopt(value)
            sources.append(value)
        if func in LIKE_ANOTHER and args:  # the other argument lends its shape or dtype, no values
            leaves = [leaf for leaf in leaves if leaf is context.leaf(args[0])]
            sources = [source for source in sources if source is args[0]]
        for leaf in leaves:
            if leaf.overwritten_by:
                leaf.require_unchanged()
        if func in FIRST and not self._has_ended():
            result = FIRST[func](context, func, args, kwargs)
            if result is not NotImplemented:
                return result
        try:
            if func is Tensor.__getitem__ and sources and context.axes.takes_number(args, sources):
                sources = []
            if leaves and torch.is_grad_enabled() and not only_describes(func):
                if sources:
                    return with_data(context, func, args, kwargs, sources, self)
                return without_data(context, func, args, kwargs, leaves)
            if leaves and not torch.is_grad_enabled() and not only_describes(func):
                _note_hidden_use(context)
            result = func(*args, **kwargs)
        except RuntimeError as error:
            if not isinstance(error, HushgradError):
                self._explain(func, args, kwargs, leaves)
            raise
        try:
            if func is Tensor.__setitem__:
                context.axes.wrote(*args)
            elif sources:
                context.axes.follow(func, sources, args, kwargs, result)
        except Exception:
            if not self._has_ended():
                raise
        return result

    def _explain(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[TrackedTensor]
    ) -> None:
        """Refuse what torch has refused, if it is because operators run as functions of this package here."""
        if leaves and (transform := transform_in_force()) is not None:
            refuse_transforms(transform, leaves[0].name)
        if changes_in_place(func):
            _refuse_change_of_output(func, main_argument(args, kwargs))

    def _has_ended(self) -> bool:
        self._over = not self._is_running()
        return self._over


def _refuse_change_of_output(func: Callable[..., Any], target: Any) -> None:
    """Say why torch refused to change a tensor in place, if it is because an operator captured here made it."""
    for made in (target, base_of(target)) if isinstance(target, Tensor) else ():
        if made is not None and made.grad_fn is not None and _is_captured(made.grad_fn):
            raise UncoveredParameterUseError(
                f"cannot change in place what was computed with a parameter, or a part of it{calling_forward()}",
                where=func.__name__,
                cure=f"Use the form of {func.__name__} that returns a new tensor",
            ) from None


def _is_captured(node: Any) -> bool:
    """Return whether an operator ran as an autograd function of this package."""
    function = function_of(node)
    return function is not None and function.__module__.startswith(f"{PACKAGE}.")


def _sort(
    context: ForwardContext, values: Any, leaves: list[TrackedTensor], sources: list[Tensor], strangers: list[Tensor]
) -> None:
    """Collect the leaves and the data among some arguments, nested ones included.

    A tensor that requires gradients but is neither is a stranger, and counts as data whose examples cannot be told
    apart: to take it for a constant would lose the gradient of whatever it came from.
    """
    known, axes = context.leaves, context.axes
    for value in values:
        if isinstance(value, Tensor):
            leaf = known.get(id(value))
            if leaf is not None:
                leaves.append(leaf)
            elif (
                axes.descends(value)
                or (axes.written and axes.shows_written(value))
                or (axes.conversions is not None and axes.conversions.shows(value))
            ):
                sources.append(value)
            elif value.requires_grad:
                strangers.append(value)
        elif isinstance(value, (tuple, list)):
            _sort(context, value, leaves, sources, strangers)


def _note_hidden_use(context: ForwardContext) -> None:
    """Keep the cure for a custom autograd function that takes a parameter, should the backward come to it."""
    function = running_function()
    if function is not None:
        context.hidden_line = registration_line(function)


def _is_read_without_gradients(context: ForwardContext, value: Tensor) -> bool:
    """Whether a tensor is a view of a parameter made under no_grad, and is used there: constants, as the parameter is.

    torch says of such a view that it requires gradients.
    """
    return not torch.is_grad_enabled() and value.grad_fn is None and context.leaf(base_of(value)) is not None


def _require_known_graph(context: ForwardContext, value: Tensor) -> None:
    """Refuse a tensor made from a parameter by what the mode cannot see: a custom autograd function, say.

    Looks at the nearest part of the graph only. A use that is further away leaves an ordinary gradient behind, which
    is refused when the physical batch ends; here it gets its name.
    """
    nodes = [] if value.grad_fn is None else [value.grad_fn]
    for _ in range(NODES_TO_LOOK_AT):
        if not nodes:
            return
        node = nodes.pop(0)
        if (name := _parameter_of(context, node)) is not None:
            raise UncoveredParameterUseError(
                f"is used in the forward by {_name_of(value.grad_fn)}, a custom autograd function or compiled code, "
                f"where its use cannot be followed",
                where=name,
                cure=registration_line(function_of(value.grad_fn)),
            )
        nodes.extend(following for following, _ in node.next_functions if following is not None)


def _parameter_of(context: ForwardContext, node: Any) -> str | None:
    """Return what a node is the end of: the name of a parameter, or of a tensor made of parameters alone."""
    if _name_of(node) == "torch::autograd::AccumulateGrad":
        leaf = context.leaf(node.variable)
        return None if leaf is None else leaf.name
    return getattr(node, "leaf_name", None) if _is_captured(node) else None


def _name_of(node: Any) -> str:
    """Return what torch calls a node; a custom function may keep a `name` of its own on it, which hides torch's."""
    return type(node).name(node)  # type: ignore[no-any-return]
