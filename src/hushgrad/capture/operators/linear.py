"""`F.linear`, `x @ W` and `addmm`: the leaf is a matrix, the data has any number of middle dimensions.

Complex products are left to `generic.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.capture.axes import products as products
from hushgrad.capture.axes.owners import BatchLocation, dim_of
from hushgrad.capture.leaves import TrackedTensor
from hushgrad.capture.operators.operator import ForwardContext, Operator, Recorded, capture
from hushgrad.capture.operators.registration import captures
from hushgrad.capture.uses import UsePool
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.narrow import outer_products, widened


@dataclass(eq=False)  # not frozen, which takes three times as long to make: there is one for each call
class Linear(Operator):
    """`x Wᵀ + b`, W `[p, d]`; with `swapped`, `x W + b`, W `[d, p]`."""

    autocasts: ClassVar[bool] = True
    name: str
    weight: TrackedTensor | None
    bias: TrackedTensor | None
    axis: BatchLocation
    swapped: bool

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the product; the input is kept only where the weight's gradient is wanted."""
        x, weight, bias = inputs
        assert x is not None
        assert weight is not None
        if not self.swapped:
            output = F.linear(x, weight, bias)
        else:
            output = torch.matmul(x, weight) if bias is None else torch.addmm(bias, x, weight)
        return output, (x if self.weight is not None else None, weight)

    def input_gradients(
        self, saved: tuple[Tensor | None, ...], gradient: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Return the gradient of x."""
        weight = saved[1]
        assert weight is not None
        if not needed[0]:
            return (None, None, None)
        return (torch.matmul(gradient, weight.mT if self.swapped else weight), None, None)

    def input_gradient_again(
        self, context: ForwardContext, saved: tuple[Tensor | None, ...], gradient: Tensor
    ) -> Tensor:
        """Return `g W`: the product with the same matrix, the other way round."""
        back = Linear(f"the gradient of {self.name}", self.weight, None, self.axis, swapped=not self.swapped)
        return capture(back, context, gradient, saved[1], None)

    def record(self, pool: UsePool, saved: tuple[Tensor | None, ...], gradient: Tensor) -> Recorded:
        """Record outer products for the weight and the sum over positions for the bias."""
        left_BTp = _positions(pool.operands(gradient, self.axis, self.name))
        uses: list[tuple[TrackedTensor, Any]] = []
        if self.weight is not None:
            x = saved[0]
            assert x is not None
            right_BTd = _positions(pool.operands(x, self.axis, self.name))
            sides = (right_BTd, left_BTp) if self.swapped else (left_BTp, right_BTd)
            uses.append((self.weight, outer_products(*sides)))
        if self.bias is not None:
            uses.append((self.bias, Dense(widened(left_BTp).sum(1))))
        return uses


def _positions(tensor: Tensor) -> Tensor:
    """`[B, ..., d]` to `[B, T, d]`."""
    if tensor.ndim == 2:  # the commonest, and the cheapest way to it
        return tensor.unsqueeze(1)
    return tensor.reshape(tensor.shape[0], -1, tensor.shape[-1])


def _on_last_dimension(axis: BatchLocation, x: Tensor) -> bool:
    """Whether the batch lies on the dimension that the product sums over."""
    return dim_of(axis) == x.ndim - 1


def _is_constant(tensor: Tensor | None) -> bool:
    return tensor is None or not tensor.requires_grad


@captures(F.linear, axis=products.linear)
def linear(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `F.linear(input, weight, bias=None)`."""
    x, weight, bias = _linear_arguments(*args, **kwargs)
    weight_leaf, bias_leaf, axis = context.leaf(weight), context.leaf(bias), context.axes.location(x)
    if not context.axes.descends(x) or weight.ndim != 2 or x.is_complex() or _on_last_dimension(axis, x):
        return NotImplemented
    if context.axes.descends(weight) or (bias is not None and context.axes.descends(bias)):
        return NotImplemented
    if not (weight_leaf or _is_constant(weight)) or not (bias_leaf or _is_constant(bias)):
        return NotImplemented
    name = f"linear({_first_name(weight_leaf, bias_leaf)})"
    operator = Linear(name, weight_leaf, bias_leaf, axis, swapped=False)
    return capture(operator, context, x, _value(weight_leaf, weight), _value(bias_leaf, bias))


@captures(
    torch.matmul, torch.linalg.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, axis=products.product
)
def matmul(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `x @ W` with a matrix W."""
    if kwargs or len(args) != 2:
        return NotImplemented
    x, weight = args
    leaf, axis = context.leaf(weight), context.axes.location(x)
    if leaf is None or not context.axes.descends(x) or weight.ndim != 2 or x.ndim < 2 or x.is_complex():
        return NotImplemented
    if _on_last_dimension(axis, x):
        return NotImplemented
    operator = Linear(f"matmul({leaf.name})", leaf, None, axis, swapped=True)
    return capture(operator, context, x, leaf.value, None)


@captures(torch.addmm, Tensor.addmm, axis=products.added_product)
def addmm(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `torch.addmm(b, x, W)` with a vector b, as `Conv1D` layers of language models call it."""
    if kwargs or len(args) != 3:
        return NotImplemented
    bias, x, weight = args
    leaf, bias_leaf, axis = context.leaf(weight), context.leaf(bias), context.axes.location(x)
    if not context.axes.descends(x) or context.axes.descends(weight) or context.axes.descends(bias):
        return NotImplemented
    if bias.ndim != 1 or bias.shape[0] != weight.shape[1] or x.is_complex() or _on_last_dimension(axis, x):
        return NotImplemented
    if not (leaf or _is_constant(weight)) or not (bias_leaf or _is_constant(bias)):
        return NotImplemented
    operator = Linear(f"addmm({_first_name(leaf, bias_leaf)})", leaf, bias_leaf, axis, swapped=True)
    return capture(operator, context, x, _value(leaf, weight), _value(bias_leaf, bias))


def _linear_arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Any, Any, Any]:
    return input, weight, bias


def _value(leaf: TrackedTensor | None, tensor: Tensor | None) -> Tensor | None:
    return leaf.value if leaf is not None else tensor


def _first_name(*leaves: TrackedTensor | None) -> str:
    return next(leaf.name for leaf in leaves if leaf is not None)
