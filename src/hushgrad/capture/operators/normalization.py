"""Layer, group, instance, RMS and frozen batch normalisation with a trainable scale and shift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.capture.axes import products as products
from hushgrad.capture.axes.owners import BatchLocation, dim_of
from hushgrad.capture.axes.rules import batch_first, frozen_batch_norm
from hushgrad.capture.leaves import TrackedTensor
from hushgrad.capture.operators.broadcast import Expand, broadcast
from hushgrad.capture.operators.operator import ForwardContext, Operator, Recorded, capture
from hushgrad.capture.operators.registration import asked_first, captures
from hushgrad.capture.uses import UsePool
from hushgrad.errors import CrossSampleLeakError, PrivateBufferError
from hushgrad.gradients.dense import Dense


@dataclass(frozen=True, eq=False)
class LayerNorm(Operator):
    """Normalisation over the trailing dimensions `shape`, then `x̂ · weight + bias`."""

    name: str
    weight: TrackedTensor | None
    bias: TrackedTensor | None
    axis: BatchLocation
    shape: tuple[int, ...]
    eps: float

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the normalised input; the statistics are kept."""
        x, weight, bias = inputs
        assert x is not None
        output, mean, rstd = torch.native_layer_norm(x, self.shape, weight, bias, self.eps)
        return output, (x, weight, bias, mean, rstd)

    def input_gradients(
        self, saved: tuple[Tensor | None, ...], gradient: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Return the gradient of x."""
        x, weight, bias, mean, rstd = saved
        if not needed[0]:
            return (None, None, None)
        found = torch.ops.aten.native_layer_norm_backward(
            gradient, x, self.shape, mean, rstd, weight, bias, [True, False, False]
        )
        return (found[0], None, None)

    def input_gradient_again(
        self, context: ForwardContext, saved: tuple[Tensor | None, ...], gradient: Tensor
    ) -> Tensor | None:
        """Return the gradient of the normalisation alone, of the scaled gradient."""
        x, weight = saved[0], saved[1]
        assert x is not None
        scaled = _scaled(context, self.name, self.weight, weight, self.axis, gradient)
        if scaled is None:
            return None
        return _differentiated(lambda value: F.layer_norm(value, self.shape, None, None, self.eps), x, scaled)

    def record(self, pool: UsePool, saved: tuple[Tensor | None, ...], gradient: Tensor) -> Recorded:
        """Record Σ_t g·x̂ for the scale and Σ_t g for the shift."""
        x, _, _, mean, rstd = saved
        assert x is not None
        assert mean is not None
        assert rstd is not None
        uses: list[tuple[TrackedTensor, Any]] = []
        if self.weight is not None:
            normalized = (x.to(mean.dtype) - mean) * rstd
            uses.append((self.weight, self._summed(pool, gradient * normalized)))
        if self.bias is not None:
            uses.append((self.bias, self._summed(pool, gradient)))
        return uses

    def _summed(self, pool: UsePool, values: Tensor) -> Dense:
        examples = pool.examples(values, self.axis, self.name)
        return Dense(examples.reshape(examples.shape[0], -1, *self.shape).sum(1))


@dataclass(frozen=True, eq=False)
class GroupNorm(Operator):
    """Normalisation of each example within groups of channels, then a scale and shift per channel."""

    name: str
    weight: TrackedTensor | None
    bias: TrackedTensor | None
    axis: BatchLocation
    groups: int
    eps: float

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the normalised input; the statistics are kept."""
        x, weight, bias = inputs
        assert x is not None
        x = x.contiguous()
        output, mean, rstd = torch.native_group_norm(x, weight, bias, *_sizes(x), self.groups, self.eps)
        return output, (x, weight, mean, rstd)

    def input_gradients(
        self, saved: tuple[Tensor | None, ...], gradient: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Return the gradient of x."""
        x, weight, mean, rstd = saved
        assert x is not None
        if not needed[0]:
            return (None, None, None)
        found = torch.ops.aten.native_group_norm_backward(
            gradient.contiguous(), x, mean, rstd, weight, *_sizes(x), self.groups, [True, False, False]
        )
        return (found[0], None, None)

    def input_gradient_again(
        self, context: ForwardContext, saved: tuple[Tensor | None, ...], gradient: Tensor
    ) -> Tensor | None:
        """Return the gradient of the normalisation alone, of the scaled gradient."""
        x, weight = saved[0], saved[1]
        assert x is not None
        # Channels last, where the scale's own axis is.
        axis = 0 if self.axis == 0 else None
        scaled = _scaled(context, self.name, self.weight, weight, axis, gradient.movedim(1, -1))
        if scaled is None:
            return None
        return _differentiated(
            lambda value: F.group_norm(value, self.groups, None, None, self.eps), x, scaled.movedim(-1, 1)
        )

    def record(self, pool: UsePool, saved: tuple[Tensor | None, ...], gradient: Tensor) -> Recorded:
        """Record Σ_space g·x̂ for the scale and Σ_space g for the shift."""
        x, weight, mean, rstd = saved
        assert x is not None
        assert mean is not None
        assert rstd is not None
        # The examples' channels side by side are the channels of one example, so that nothing is summed over examples.
        batch, channels, space = _sizes(x)
        scale = None if weight is None else weight.repeat(batch)
        flat = (1, batch * channels, space, batch * self.groups)
        # In this shape, too: of one place each, channels may seem to lie last, and the kernel would read them so.
        x, gradient = (value.reshape(flat[:3]) for value in (x, gradient))
        found = torch.ops.aten.native_group_norm_backward(
            gradient.contiguous(), x, mean.view(1, -1), rstd.view(1, -1), scale, *flat, [False, True, True]
        )
        return [
            (leaf, self._summed(pool, values.view(batch, channels)))
            for leaf, values in ((self.weight, found[1]), (self.bias, found[2]))
            if leaf is not None
        ]

    def _summed(self, pool: UsePool, values_BC: Tensor) -> Dense:
        examples = pool.examples(values_BC, self.axis, self.name)
        return Dense(examples.sum(1) if examples.ndim > 2 else examples)


def _scaled(
    context: ForwardContext,
    name: str,
    leaf: TrackedTensor | None,
    weight: Tensor | None,
    axis: BatchLocation,
    gradient: Tensor,
) -> Tensor | None:
    """Return `gradient · weight`, the scale on the last axes, as a captured use; None where the batch has no axis."""
    if weight is None:
        return gradient
    if leaf is None:
        return gradient * weight
    if not isinstance(axis, int) or axis >= gradient.ndim - weight.ndim:
        return None
    lead = [size if dim == axis else 1 for dim, size in enumerate(gradient.shape[: gradient.ndim - weight.ndim])]
    rows = Expand(f"the gradient of {name}", leaf, axis, (*lead, *weight.shape))
    return gradient * capture(rows, context)


def _differentiated(normalize: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of x, with its own graph."""
    (found,) = torch.autograd.grad(normalize(x), x, gradient, create_graph=True)
    return found


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x[0, 0].numel()


@captures(F.layer_norm, axis=products.layer_normalized, follows=[torch.layer_norm])
def layer_norm(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `F.layer_norm`."""
    x, shape, weight, bias, eps = _layer_arguments(*args, **kwargs)
    location = context.axes.location(x)
    axis = dim_of(location)
    if not _plain_data(context, x, weight, bias) or (axis is not None and axis >= x.ndim - len(shape)):
        return NotImplemented
    weight_leaf, bias_leaf = context.leaf(weight), context.leaf(bias)
    operator = LayerNorm(
        _name("layer_norm", weight_leaf, bias_leaf), weight_leaf, bias_leaf, location, tuple(shape), eps
    )
    return capture(operator, context, x, _value(context, weight), _value(context, bias))


@captures(F.group_norm, axis=batch_first(), follows=[torch.group_norm])
def group_norm(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `F.group_norm`."""
    x, groups, weight, bias, eps = _group_arguments(*args, **kwargs)
    return _grouped(context, "group_norm", x, groups, weight, bias, eps)


@captures(F.instance_norm, axis=batch_first(), follows=[torch.instance_norm])
def instance_norm(
    context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Capture `F.instance_norm` on the input's own statistics: group normalisation with one channel per group."""
    x, mean, variance, weight, bias, own_statistics, momentum, eps = _instance_arguments(*args, **kwargs)
    if not own_statistics:
        plain = F.instance_norm(x, mean, variance, None, None, own_statistics, momentum, eps)
        return _affine(context, x, plain, weight, bias)
    return _grouped(context, "instance_norm", x, x.shape[1], weight, bias, eps)


def _grouped(
    context: ForwardContext, kind: str, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Any:
    axis = context.axes.get(x)
    if not _plain_data(context, x, weight, bias) or axis not in (0, None) or x.ndim < 2 or x.shape[0] == 0:
        return NotImplemented
    weight_leaf, bias_leaf = context.leaf(weight), context.leaf(bias)
    operator = GroupNorm(_name(kind, weight_leaf, bias_leaf), weight_leaf, bias_leaf, axis, groups, eps)
    return capture(operator, context, x, _value(context, weight), _value(context, bias))


@captures(F.rms_norm, axis=products.layer_normalized, follows=[torch.rms_norm])
def rms_norm(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `F.rms_norm` as the plain normalisation followed by a captured product."""
    x, shape, weight, eps = _rms_arguments(*args, **kwargs)
    location = context.axes.location(x)
    axis = dim_of(location)
    if not context.axes.descends(x) or axis is None or axis >= x.ndim - len(shape):
        return NotImplemented
    plain = F.rms_norm(x, shape, None, eps)
    context.axes.set(plain, location)
    return broadcast(context, Tensor.mul, (plain, weight), {})


@captures(F.batch_norm, axis=frozen_batch_norm, follows=[torch.batch_norm])
def batch_norm(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `F.batch_norm` on frozen statistics; on batch statistics it is refused before it comes here."""
    x, mean, variance, weight, bias, training, momentum, eps = _batch_arguments(*args, **kwargs)
    plain = F.batch_norm(x, mean, variance, None, None, training, momentum, eps)
    return _affine(context, x, plain, weight, bias)


def _affine(context: ForwardContext, x: Tensor, plain: Tensor, weight: Tensor | None, bias: Tensor | None) -> Any:
    """Return `plain · weight + bias` with both per channel (dimension 1), captured."""
    axis = context.axes.get(x)
    if not context.axes.descends(x) or axis not in (0, None):
        return NotImplemented
    for parameter, combine in ((weight, Tensor.mul), (bias, Tensor.add)):
        if parameter is None:
            continue
        context.axes.set(plain, axis)
        leaf = context.leaf(parameter)
        spread = [-1, *[1] * (x.ndim - 2)]
        if leaf is None:
            plain = combine(plain, parameter.reshape(spread))
            continue
        reshaped = TrackedTensor(leaf.name, leaf.value.reshape(spread), leaf.graph.reshape(spread), leaf.parameters())
        stand_in = reshaped.value
        context.leaves[id(stand_in)] = reshaped
        context.held.append(stand_in)
        plain = broadcast(context, combine, (plain, stand_in), {})
        if plain is NotImplemented:
            return NotImplemented
    return plain


def _trains_on_data(context: ForwardContext, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return torch.is_grad_enabled() and any(context.is_data(value) for value in (*args, *kwargs.values()))


@asked_first(F.batch_norm)
def refuse_batch_statistics(
    context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Refuse `F.batch_norm` that would mix the examples of a batch; let others go on."""
    if _trains_on_data(context, args, kwargs) and _batch_arguments(*args, **kwargs)[5]:
        raise CrossSampleLeakError(
            "normalises each example by the statistics of the whole batch",
            where="batch_norm",
            cure="Use GroupNorm, or put the layer into eval() so that its frozen statistics are used",
        )
    return NotImplemented


@asked_first(F.instance_norm)
def refuse_running_statistics(
    context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Refuse `F.instance_norm` that would write statistics of the data into a buffer; let others go on."""
    _, mean, variance, _, _, own_statistics, _, _ = _instance_arguments(*args, **kwargs)
    if _trains_on_data(context, args, kwargs) and own_statistics and (mean is not None or variance is not None):
        raise PrivateBufferError(
            "track_running_stats=True writes statistics of the data into buffers without noise",
            where="instance_norm",
            cure="Set track_running_stats=False",
        )
    return NotImplemented


def _plain_data(context: ForwardContext, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether x is data and scale and shift are leaves or constants."""
    return context.axes.descends(x) and all(
        part is None or context.leaf(part) is not None or (not part.requires_grad and not context.axes.descends(part))
        for part in (weight, bias)
    )


def _value(context: ForwardContext, tensor: Tensor | None) -> Tensor | None:
    leaf = context.leaf(tensor)
    return leaf.value if leaf is not None else tensor


def _name(kind: str, *leaves: TrackedTensor | None) -> str:
    return f"{kind}({next(leaf.name for leaf in leaves if leaf is not None)})"


def _layer_arguments(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Any, ...]:
    return input, normalized_shape, weight, bias, eps


def _group_arguments(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Any, ...]:
    return input, num_groups, weight, bias, eps


def _rms_arguments(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> tuple[Any, ...]:
    return input, normalized_shape, weight, eps


def _instance_arguments(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, ...]:
    return input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps


def _batch_arguments(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, ...]:
    return input, running_mean, running_var, weight, bias, training, momentum, eps
