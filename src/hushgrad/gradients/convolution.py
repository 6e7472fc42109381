"""Per-example gradients of a convolution's weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.gradients.contribution import Contribution, Plan, Way, chunks_of_examples
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.outer import OuterProducts

# What moving one value costs in multiply-adds, on the machines that this was measured on: in unfolding inputs, and in
# writing, squaring and summing a gradient that is formed.
UNFOLDING, HOLDING = 50, 40

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
        shape = (self.weight_shape[0] * repeat, *self.weight_shape[1:])
        weight = inputs.new_empty(1).expand(shape)  # only its shape is read
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
class Convolution(Contribution):
    """Gradients of a convolution from its inputs `[B, d, *space]` and output gradients `[B, p, *space']`."""

    inputs: Tensor
    grad_outputs: Tensor
    geometry: Geometry

    @property
    def batch_size(self) -> int:
        """B, the number of examples."""
        return self.inputs.shape[0]

    def way(self, plan: Plan) -> Way:
        """Return the way in which norms are computed: by its cost, unless the plan forces one."""
        if self.geometry.groups != 1:
            return "instantiate"
        if plan.way in ("gram", "instantiate"):
            return plan.way
        positions = self.grad_outputs[0, 0].numel()
        p, d = self.geometry.weight_shape[0], self.geometry.columns
        # Gradients that are formed and kept spare the sum that ends the way by Gram matrices, position by position as
        # much work as forming them. So what is compared is the rest of either way.
        gram = positions * positions * (p + d) + UNFOLDING * positions * d
        forming = HOLDING * p * d if self._fits(plan) else (HOLDING + positions) * p * d
        return "gram" if gram <= forming else "instantiate"

    def _fits(self, plan: Plan) -> bool:
        return self._bytes_per_example * self.batch_size <= plan.keep_bytes

    @property
    def _bytes_per_example(self) -> int:
        return torch.Size(self.geometry.weight_shape).numel() * self.inputs.element_size()

    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]`, and `Dense` gradients where they were formed and may be kept."""
        if self.way(plan) == "gram":
            return self.unfolded().measure(replace(plan, way="gram"))[0], self
        if self._fits(plan):
            return Dense(self.per_example()).measure(plan)
        norms = [
            Dense(_instantiate(self.inputs[part], self.grad_outputs[part], self.geometry)).measure(plan)[0]
            for part in chunks_of_examples(self.batch_size, self._bytes_per_example, plan.keep_bytes)
        ]
        return torch.cat(norms), self

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
