"""Per-example gradients of a convolution's weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.gradients.contribution import Contribution, Plan, Way, chunks_of_examples
from hushgrad.gradients.factored import Factored
from hushgrad.gradients.machine import Machine
from hushgrad.gradients.outer import OuterProducts, inner_product
from hushgrad.gradients.rounding import LONG, POSITIONS, WIDE, WIDTH, Sizes, squared_norms
from hushgrad.gradients.windows import Axis, window_gram, window_gram_cost

# Gram matrices from windows take the inputs apart modulo the stride; above so many parts, calls cost more than copies.
MOST_PHASES = 16

# Bytes of gradients that one convolution forms: with more of them it takes several times as long for each.
AT_ONCE = 1 << 23


@dataclass(frozen=True)
class Geometry:
    """The public shape of a convolution: weight `[p, d/groups, *kernel]` and how the kernel moves."""

    weight_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def columns(self) -> int:
        """Inputs that one output value sees: d/groups times the kernel's size."""
        return int(torch.Size(self.weight_shape[1:]).numel())

    def weight_gradient(self, inputs: Tensor, grad_outputs: Tensor, repeat: int = 1) -> Tensor:
        """Return the weight gradient of a batch, or of `repeat` convolutions side by side in the channels."""
        weight = inputs.new_empty(self.weight_shape[0] * repeat, *self.weight_shape[1:])  # only its shape is read
        output_padding = [0] * len(self.stride)
        gradients = torch.ops.aten.convolution_backward(
            grad_outputs,
            inputs,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            output_padding,
            self.groups * repeat,
            [False, True, False],
        )
        return gradients[1]  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Convolution(Factored):
    """Gradients of a convolution from its inputs `[B, d, *space]` and output gradients `[B, p, *space']`."""

    inputs: Tensor
    grad_outputs: Tensor
    geometry: Geometry

    @property
    def operands(self) -> tuple[Tensor, Tensor]:
        """Inputs and output gradients."""
        return self.inputs, self.grad_outputs

    @property
    def example_bytes(self) -> int:
        """How many bytes the gradient of one example takes."""
        return prod(self.geometry.weight_shape) * self.inputs.element_size()

    def times(self, plan: Plan) -> Mapping[Way, float]:
        """Return what each way takes for one example beyond the sum by a convolution, in nanoseconds.

        Gradients that are formed and kept spare that sum, which is as much work as forming them.
        """
        machine, p, d = plan.machine, self.geometry.weight_shape[0], self.geometry.columns
        positions = self.grad_outputs[0, 0].numel()
        forming = machine.convolved * p * d
        if self.grows_by > plan.keep_bytes:
            forming += machine.multiply_add * positions * p * d
        if self.geometry.groups != 1:
            return {"instantiate": forming}
        grams = machine.multiply_add * positions**2 * p + min(self._gram_times(machine).values())
        grams *= 1 if self.is_narrow else WIDE
        return {"gram": grams, "instantiate": forming}

    def _gram_times(self, machine: Machine) -> Mapping[str, float]:
        return _times_of_window_grams(machine, self.inputs.shape[1], self._axes)

    @property
    def _axes(self) -> tuple[Axis, ...]:
        return _axes(self.geometry, tuple(self.grad_outputs.shape[2:]))

    def gram_products(self, plan: Plan) -> int:
        """Return the multiplications that Gram matrices of one example take."""
        positions = self.grad_outputs[0, 0].numel()
        if self._is_unfolded(plan):
            return positions**2 * (self.geometry.weight_shape[0] + self.geometry.columns)
        return positions**2 * self.geometry.weight_shape[0] + window_gram_cost(self.inputs.shape[1], self._axes)[0]

    def _is_unfolded(self, plan: Plan) -> bool:
        times = self._gram_times(plan.machine)
        return min(times, key=lambda name: times[name]) == "unfolded"

    def gram_norms(self, plan: Plan) -> Tensor:
        """‖G_i‖² = ⟨L Lᵀ, R Rᵀ⟩ as for outer products, R what positions see, which need not be written out."""
        if self._is_unfolded(plan):
            return self.unfolded().gram_norms(plan)
        left_BpT = self.grad_outputs.flatten(2)
        gram_BTT = torch.bmm(left_BpT.mT, left_BpT)
        return inner_product(gram_BTT, window_gram(self.inputs, self._axes), self.batch_size)

    def sizes(self) -> Sizes:
        """Return how large the terms of the positions are: output gradients times what the position sees."""
        geometry = self.geometry
        space = self.inputs.shape[2:]
        inputs_BTd, outputs_BTp = (operand.flatten(2).mT for operand in self.operands)
        squares = squared_norms(inputs_BTd).to(self.inputs.dtype).view(-1, 1, *space)
        kernel = squares.new_ones(1, 1, *geometry.weight_shape[2:])
        no_padding = [0] * len(space)
        seen = torch.convolution(
            squares, kernel, None, geometry.stride, geometry.padding, geometry.dilation, False, no_padding, 1
        )
        widths = self.grad_outputs.shape[1], geometry.columns * geometry.groups
        return Sizes.of(squared_norms(outputs_BTp), seen.flatten(1).double(), widths, self.inputs.dtype)

    @property
    def is_narrow(self) -> bool:
        """Whether there are few positions of few values."""
        narrow = max(self.grad_outputs.shape[1], self.geometry.columns) <= WIDTH
        return narrow and self.grad_outputs[0, 0].numel() <= POSITIONS

    @property
    def drifts(self) -> bool:
        """Whether there are many output positions."""
        return self.grad_outputs[0, 0].numel() > LONG

    @property
    def terms(self) -> int:
        """The number of output positions, of the whole batch: they are summed in one call."""
        return self.batch_size * self.grad_outputs[0, 0].numel()

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i as one ordinary convolution weight gradient."""
        weights = weights_B.to(self.grad_outputs.dtype).reshape(-1, *[1] * (self.grad_outputs.ndim - 1))
        if self.grad_outputs[0].numel() <= self.inputs[0].numel():
            return self.geometry.weight_gradient(self.inputs, self.grad_outputs * weights)
        return self.geometry.weight_gradient(self.inputs * weights, self.grad_outputs)

    def per_example(self) -> Tensor:
        """Return the gradients, `[B, *weight_shape]`."""
        return _instantiate(self.inputs, self.grad_outputs, self.geometry)

    def map_examples(self, change: Callable[[Tensor], Tensor]) -> Contribution:
        """Return the convolution of the changed operands."""
        return Convolution(change(self.inputs), change(self.grad_outputs), self.geometry)

    def unfolded(self) -> OuterProducts:
        """Return the same gradients as outer products over output positions (one group only)."""
        right_BTd = unfold(self.inputs, self.geometry, self.grad_outputs.shape[2:])
        return OuterProducts(self.grad_outputs.flatten(2).mT, right_BTd)


@lru_cache(maxsize=1024)
def _axes(geometry: Geometry, positions: tuple[int, ...]) -> tuple[Axis, ...]:
    numbers = (positions, geometry.weight_shape[2:], geometry.stride, geometry.padding, geometry.dilation)
    return tuple(Axis(*of_axis) for of_axis in zip(*numbers, strict=True))


@lru_cache(maxsize=1024)
def _times_of_window_grams(machine: Machine, channels: int, axes: tuple[Axis, ...]) -> Mapping[str, float]:
    """Return what the Gram matrix of what positions see takes, in nanoseconds, from windows and unfolded."""
    positions, columns = prod(axis.positions for axis in axes), channels * prod(axis.kernel for axis in axes)
    times = {"unfolded": machine.unfolded * positions * columns + machine.multiply_add * positions**2 * columns}
    if prod(axis.stride for axis in axes) <= MOST_PHASES:
        products, moved = window_gram_cost(channels, axes)
        times["windows"] = machine.multiply_add * products + machine.moved * moved
    return times


def _instantiate(inputs: Tensor, grad_outputs: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradients of all examples, `[B, *weight_shape]`."""
    if geometry.weight_shape[1] == geometry.groups == 1:
        return _instantiate_one_channel(inputs, grad_outputs, geometry)
    batch = inputs.shape[0]
    bytes_per_example = geometry.columns * geometry.weight_shape[0] * inputs.element_size()
    portions = -(-batch * bytes_per_example // AT_ONCE)
    if portions <= 1:
        return _instantiate_at_once(inputs, grad_outputs, geometry)
    gradients = inputs.new_empty(batch, *geometry.weight_shape)
    for part in chunks_of_examples(batch, 1, -(-batch // portions)):
        gradients[part] = _instantiate_at_once(inputs[part], grad_outputs[part], geometry)
    return gradients


def _instantiate_at_once(inputs: Tensor, grad_outputs: Tensor, geometry: Geometry) -> Tensor:
    """Some examples as one convolution whose channels are the examples' channels side by side."""
    batch = inputs.shape[0]
    side_by_side = geometry.weight_gradient(
        inputs.reshape(1, -1, *inputs.shape[2:]), grad_outputs.reshape(1, -1, *grad_outputs.shape[2:]), repeat=batch
    )
    return side_by_side.reshape(batch, *geometry.weight_shape)


def _instantiate_one_channel(inputs: Tensor, grad_outputs: Tensor, geometry: Geometry) -> Tensor:
    """With one input channel, an ordinary convolution in which output gradients are the filters: much the fastest.

    G[p, k] = Σ_t x[stride · t + dilation · k - padding] · g[p, t], so stride and dilation change places.
    """
    batch, space = inputs.shape[0], len(geometry.stride)
    gradients = torch.convolution(
        inputs.transpose(0, 1),
        grad_outputs.reshape(-1, 1, *grad_outputs.shape[2:]),
        None,
        geometry.dilation,
        geometry.padding,
        geometry.stride,
        False,
        [0] * space,
        batch,
    )
    # Inputs that no output position sees, at the end, give more places than the kernel has.
    inside = [slice(0, size) for size in geometry.weight_shape[2:]]
    return gradients[(slice(None), slice(None), *inside)].reshape(batch, *geometry.weight_shape)


def unfold(inputs: Tensor, geometry: Geometry, output_space: torch.Size) -> Tensor:
    """Return the inputs each output position sees, `[B, T, d · kernel]`, for 1, 2 or 3 space dimensions.

    It is the transpose of a contiguous tensor.
    """
    pads = [amount for pad in reversed(geometry.padding) for amount in (pad, pad)]
    windows = F.pad(inputs, pads) if any(pads) else inputs
    kernel = geometry.weight_shape[2:]
    for dim, (size, step, spread) in enumerate(zip(kernel, geometry.stride, geometry.dilation, strict=True)):
        reach = spread * (size - 1) + 1
        windows = windows.unfold(2 + dim, reach, step)[..., ::spread]
    windows = windows[(slice(None), slice(None), *[slice(0, size) for size in output_space])]
    # windows: [B, d, *space', *kernel]. Positions stay innermost, as they lie in memory: the copy is twice as fast.
    space = len(kernel)
    order = [0, 1, *range(2 + space, 2 + 2 * space), *range(2, 2 + space)]
    return windows.permute(order).reshape(inputs.shape[0], -1, output_space.numel()).mT
