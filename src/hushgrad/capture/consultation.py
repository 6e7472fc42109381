"""Which rule runs a call that uses a parameter: the order in which all of them are asked, and the only place of it.

    0. FIRST        with parameters or without, gradients or none (`mode.py`): refusals, operators of others
    then, where a parameter is used and gradients are on:
    1. describes    an attribute read that says something about the tensor (its shape, its dtype) runs as it is
    with data of the batch among the arguments:
    2. composite    an operator made of others is opened; the mode sees its parts
    3. rule         the operator's own rule
    4. generic      any operator: vector-Jacobian products of this one call. Never passes on
    without data:
    5. hook         a hook on a parameter: refused, but for those that only look
    6. derive       the result is made of parameters alone, and is a parameter in its own right. Never passes on

A rule passes on by returning NotImplemented. Calls with NumPy's names for their arguments go to 4 at once, since rules
know torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from hushgrad.capture.derivation import derive
from hushgrad.capture.leaves import TrackedTensor
from hushgrad.capture.operators.generic import generic
from hushgrad.capture.operators.operator import ForwardContext
from hushgrad.capture.operators.table import COMPOSITES, RULES
from hushgrad.errors import UncoveredParameterUseError
from hushgrad.torch_internals import only_looks

NUMPY_NAMES = frozenset({"x", "a", "x1", "x2", "axis", "keepdims"})
"""Names that many of torch's operators take in the place of their own, which are not in their signatures."""

TENSOR_ATTRIBUTES = {getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "real", "imag", "data")}
"""Attribute reads that return a tensor made of the parameter's values; all others say something about it."""

HOOKS = {Tensor.register_hook, Tensor.register_post_accumulate_grad_hook}


def only_describes(func: Callable[..., Any]) -> bool:
    """Return whether a call reads an attribute that says something about a tensor, and holds none of its values."""
    return func.__name__ == "__get__" and func not in TENSOR_ATTRIBUTES


def with_data(
    context: ForwardContext,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sources: list[Tensor],
    mode: TorchFunctionMode,
) -> Any:
    """Run a call that uses a parameter on `sources`, tensors that descend from the batch."""
    if kwargs and not NUMPY_NAMES.isdisjoint(kwargs):
        return generic(context, func, args, kwargs)
    if func in COMPOSITES:
        with mode:  # torch takes the mode off while it runs a call; the parts must be seen
            result = COMPOSITES[func](context, func, args, kwargs)
        if result is not NotImplemented:
            return result
    rule = RULES.get(func)
    result = NotImplemented if rule is None else rule(context, func, args, kwargs)
    if result is NotImplemented:
        return generic(context, func, args, kwargs)  # which follows the batch itself
    context.axes.follow(func, sources, args, kwargs, result)
    return result


def without_data(
    context: ForwardContext,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: list[TrackedTensor],
) -> Any:
    """Run a call that uses parameters and no data of the batch."""
    if func in HOOKS:
        return _hooked(func, args, kwargs, leaves)
    return derive(context, func, args, kwargs, leaves)


def _hooked(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[TrackedTensor]
) -> Any:
    """Hooks of `register_multi_grad_hook` only look, as torch's FlopCounterMode does, and here there is nothing to see.

    No gradient comes back through a parameter, or through what was made of parameters alone.
    """
    if only_looks(args[1] if len(args) > 1 else kwargs.get("hook")):
        return func(*args, **kwargs)
    raise UncoveredParameterUseError(
        f"a hook on a parameter, or on a tensor made of parameters alone ({leaves[0].name}), would see or change a "
        f"gradient without noise",
        where=func.__name__,
        cure="Remove the hook",
    )
