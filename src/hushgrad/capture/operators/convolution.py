"""Convolutions and transposed ones; other padding modes arrive as an ordinary pad before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.capture.axes.owners import BatchLocation
from hushgrad.capture.axes.rules import batch_first
from hushgrad.capture.leaves import TrackedTensor
from hushgrad.capture.operators.operator import ForwardContext, Operator, Recorded, Rule, capture
from hushgrad.capture.operators.registration import captures
from hushgrad.capture.uses import UsePool
from hushgrad.gradients.convolution import Convolution, Geometry
from hushgrad.gradients.dense import Dense


@dataclass(frozen=True, eq=False)
class Convolve(Operator):
    """A convolution with symmetric padding given as numbers."""

    autocasts: ClassVar[bool] = True
    name: str
    weight: TrackedTensor | None
    bias: TrackedTensor | None
    axis: BatchLocation
    geometry: Geometry

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the ordinary convolution."""
        x, weight, bias = inputs
        assert x is not None
        assert weight is not None
        g = self.geometry
        zeros = [0] * len(g.stride)
        output = torch.convolution(x, weight, bias, g.stride, g.padding, g.dilation, False, zeros, g.groups)
        return output, (x, weight)

    def input_gradients(
        self, saved: tuple[Tensor | None, ...], gradient: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Return the gradient of the input."""
        return _input_gradient(saved, gradient, needed, self.geometry, None)

    def input_gradient_again(
        self, context: ForwardContext, saved: tuple[Tensor | None, ...], gradient: Tensor
    ) -> Tensor:
        """Return the transposed convolution of the gradient with the same weight."""
        x, weight = saved
        assert x is not None
        assert weight is not None
        g, space = self.geometry, len(self.geometry.stride)
        sizes = zip(x.shape[-space:], weight.shape[-space:], g.stride, g.padding, g.dilation, strict=True)
        # What the last window leaves over at the end of the input.
        extra = tuple((n + 2 * pad - dilation * (k - 1) - 1) % step for n, k, step, pad, dilation in sizes)
        back = ConvolveTransposed(f"the gradient of {self.name}", self.weight, None, self.axis, g, extra)
        return capture(back, context, gradient, weight, None)

    def record(self, pool: UsePool, saved: tuple[Tensor | None, ...], gradient: Tensor) -> Recorded:
        """Record the convolution for the weight and the sum over space for the bias."""
        return _recorded(
            self, pool, saved, gradient, lambda inputs, gradients: _contribution(inputs, gradients, self.geometry)
        )


@dataclass(frozen=True, eq=False)
class ConvolveTransposed(Operator):
    """A transposed convolution, weight `[d, p/groups, *kernel]`.

    It is the input gradient of a convolution from its outputs to its inputs, so its weight gradient is that of this
    convolution, with inputs and output gradients in each other's place.
    """

    autocasts: ClassVar[bool] = True
    name: str
    weight: TrackedTensor | None
    bias: TrackedTensor | None
    axis: BatchLocation
    geometry: Geometry
    output_padding: tuple[int, ...]

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the ordinary transposed convolution."""
        x, weight, bias = inputs
        assert x is not None
        assert weight is not None
        g = self.geometry
        output = torch.convolution(
            x, weight, bias, g.stride, g.padding, g.dilation, True, self.output_padding, g.groups
        )
        return output, (x, weight)

    def input_gradients(
        self, saved: tuple[Tensor | None, ...], gradient: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Return the gradient of the input."""
        return _input_gradient(saved, gradient, needed, self.geometry, self.output_padding)

    def input_gradient_again(
        self, context: ForwardContext, saved: tuple[Tensor | None, ...], gradient: Tensor
    ) -> Tensor | None:
        """Return the convolution of the gradient with the same weight."""
        if any(extra >= step for extra, step in zip(self.output_padding, self.geometry.stride, strict=True)):
            return None  # it would have more places than the input
        back = Convolve(f"the gradient of {self.name}", self.weight, None, self.axis, self.geometry)
        return capture(back, context, gradient, saved[1], None)

    def record(self, pool: UsePool, saved: tuple[Tensor | None, ...], gradient: Tensor) -> Recorded:
        """Record the convolution for the weight and the sum over space for the bias."""

        def of_weight(inputs: Tensor, gradients: Tensor) -> Convolution | Dense:
            windows, geometry = self._windows(gradients)
            return _contribution(windows, inputs, geometry)

        return _recorded(self, pool, saved, gradient, of_weight)

    def _windows(self, gradients: Tensor) -> tuple[Tensor, Geometry]:
        """Return output gradients and a geometry under which they hold one window for each input place, no more.

        What output padding adds at the end makes a window too many where it is as long as a step.
        """
        g = self.geometry
        if all(extra < step for extra, step in zip(self.output_padding, g.stride, strict=True)):
            return gradients, g
        pads = [(pad, pad - extra) for pad, extra in zip(g.padding, self.output_padding, strict=True)]
        flat = [amount for pair in reversed(pads) for amount in pair]
        return F.pad(gradients, flat), replace(g, padding=(0,) * len(g.padding))


def _input_gradient(
    saved: tuple[Tensor | None, ...],
    gradient: Tensor,
    needed: Sequence[bool],
    geometry: Geometry,
    output_padding: Sequence[int] | None,
) -> Sequence[Tensor | None]:
    """Return the gradients of x, weight and bias, of which only the first is ever formed.

    `output_padding` is that of a transposed convolution, None for an ordinary one.
    """
    x, weight = saved
    if not needed[0]:
        return (None, None, None)
    g = geometry
    found = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        g.stride,
        g.padding,
        g.dilation,
        output_padding is not None,
        output_padding or [0] * len(g.stride),
        g.groups,
        [True, False, False],
    )
    return (found[0], None, None)


def _recorded(
    call: Convolve | ConvolveTransposed,
    pool: UsePool,
    saved: tuple[Tensor | None, ...],
    gradient: Tensor,
    of_weight: Callable[[Tensor, Tensor], Convolution | Dense],
) -> Recorded:
    """Return the uses of a call: of the bias, and of the weight what `of_weight` makes of inputs and gradients."""
    gradients = pool.examples(gradient, call.axis, call.name)
    uses: list[tuple[TrackedTensor, Any]] = []
    if call.weight is not None:
        x = saved[0]
        assert x is not None
        uses.append((call.weight, of_weight(pool.examples(x, call.axis, call.name), gradients)))
    if call.bias is not None:
        # [B, p], or [B, k, p] when images are folded in
        bias_gradients = gradients.flatten(-len(call.geometry.stride)).sum(-1)
        uses.append((call.bias, Dense(bias_gradients.sum(1) if bias_gradients.ndim == 3 else bias_gradients)))
    return uses


def _contribution(inputs: Tensor, gradients: Tensor, geometry: Geometry) -> Convolution | Dense:
    if inputs.ndim == len(geometry.stride) + 2:
        return Convolution(inputs, gradients, geometry)
    # k images per example: gradients of all B·k images, then the sum over each example's own.
    batch, images = inputs.shape[:2]
    each = Convolution(inputs.flatten(0, 1), gradients.flatten(0, 1), geometry).per_example()
    return Dense(each.reshape(batch, images, *each.shape[1:]).sum(1))


def _rule(space: int) -> Rule:
    def convolve(
        context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        x, weight, bias, stride, padding, dilation, groups = _arguments(*args, **kwargs)
        weight_leaf, bias_leaf = context.leaf(weight), context.leaf(bias)
        if not _is_known(context, x, weight, bias, space):
            return NotImplemented
        if isinstance(padding, str):
            x, padding = _padded(x, weight, padding, _tuple(dilation, space))
        geometry = Geometry(
            tuple(weight.shape), _tuple(stride, space), _tuple(padding, space), _tuple(dilation, space), groups
        )
        name = f"conv{space}d({(weight_leaf or bias_leaf).name})"  # type: ignore[union-attr]
        axis = context.axes.get(args[0] if args else kwargs["input"])
        operator = Convolve(name, weight_leaf, bias_leaf, axis, geometry)
        weight_value = weight_leaf.value if weight_leaf else weight
        return capture(operator, context, x, weight_value, bias_leaf.value if bias_leaf else bias)

    return convolve


def _transposed_rule(space: int) -> Rule:
    def convolve(
        context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        x, weight, bias, stride, padding, output_padding, groups, dilation = _transposed_arguments(*args, **kwargs)
        weight_leaf, bias_leaf = context.leaf(weight), context.leaf(bias)
        if not _is_known(context, x, weight, bias, space):
            return NotImplemented
        geometry = Geometry(
            tuple(weight.shape), _tuple(stride, space), _tuple(padding, space), _tuple(dilation, space), groups
        )
        operator = ConvolveTransposed(
            f"conv_transpose{space}d({(weight_leaf or bias_leaf).name})",  # type: ignore[union-attr]
            weight_leaf,
            bias_leaf,
            context.axes.get(x),
            geometry,
            _tuple(output_padding, space),
        )
        weight_value = weight_leaf.value if weight_leaf else weight
        return capture(operator, context, x, weight_value, bias_leaf.value if bias_leaf else bias)

    return convolve


def _is_known(context: ForwardContext, x: Tensor, weight: Tensor, bias: Tensor | None, space: int) -> bool:
    """Whether x is a real batch of images with the batch first, and weight and bias are leaves or constants."""
    if not context.axes.descends(x) or x.ndim != space + 2 or context.axes.get(x) not in (0, None):
        return False
    if x.is_complex():
        return False
    parts = [part for part in (weight, bias) if part is not None and context.leaf(part) is None]
    return not any(part.requires_grad or context.axes.descends(part) for part in parts)


def _transposed_arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> tuple[Any, ...]:
    return input, weight, bias, stride, padding, output_padding, groups, dilation


def _arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...]:
    return input, weight, bias, stride, padding, dilation, groups


def _tuple(value: Any, space: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * space if len(values) == 1 else values


def _padded(x: Tensor, weight: Tensor, padding: str, dilation: tuple[int, ...]) -> tuple[Tensor, Any]:
    """Turn "valid" and "same" into numbers; an odd total for "same" puts the extra zero at the end, as torch does."""
    totals = [0 if padding == "valid" else d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if all(total % 2 == 0 for total in totals):
        return x, tuple(total // 2 for total in totals)
    pads = [amount for total in reversed(totals) for amount in (total // 2, total - total // 2)]
    return F.pad(x, pads), 0


for _space in (1, 2, 3):
    captures(getattr(F, f"conv{_space}d"), axis=batch_first(_space + 2))(_rule(_space))
    captures(getattr(F, f"conv_transpose{_space}d"), axis=batch_first(_space + 2))(_transposed_rule(_space))
