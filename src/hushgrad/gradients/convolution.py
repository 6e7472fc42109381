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
        """Return the way in which norms are computed: by the count of operations, unless the plan forces one."""
        if self.geometry.groups != 1:
            return "instantiate"
        if plan.way in ("gram", "instantiate"):
            return plan.way
        positions = self.grad_outputs[0, 0].numel()
        p, d = self.geometry.weight_shape[0], self.geometry.columns
        return "gram" if positions * (p + d) <= p * d else "instantiate"

    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]`, and `Dense` gradients where they were formed and may be kept."""
        if self.way(plan) == "gram":
            return self.unfolded().measure(replace(plan, way="gram"))[0], self
        bytes_per_example = torch.Size(self.geometry.weight_shape).numel() * self.inputs.element_size()
        if bytes_per_example * self.batch_size <= plan.keep_bytes:
            return Dense(self.per_example()).measure(plan)
        norms = [
            Dense(_instantiate(self.inputs[part], self.grad_outputs[part], self.geometry)).measure(plan)[0]
            for part in chunks_of_examples(self.batch_size, bytes_per_example, plan.keep_bytes)
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
    """All examples at once as one convolution whose channels are the examples' channels side by side."""
    batch = inputs.shape[0]
    side_by_side = geometry.weight_gradient(
        inputs.reshape(1, -1, *inputs.shape[2:]), grad_outputs.reshape(1, -1, *grad_outputs.shape[2:]), repeat=batch
    )
    return side_by_side.reshape(batch, *geometry.weight_shape)


def unfold(inputs: Tensor, geometry: Geometry, output_space: torch.Size) -> Tensor:
    """Return the inputs each output position sees, `[B, T, d · kernel]`, for 1, 2 or 3 space dimensions."""
    pads = [amount for pad in reversed(geometry.padding) for amount in (pad, pad)]
    windows = F.pad(inputs, pads) if any(pads) else inputs
    kernel = geometry.weight_shape[2:]
    for dim, (size, step, spread) in enumerate(zip(kernel, geometry.stride, geometry.dilation, strict=True)):
        reach = spread * (size - 1) + 1
        windows = windows.unfold(2 + dim, reach, step)[..., ::spread]
    # windows: [B, d, *space', *kernel]
    space = len(kernel)
    order = [0, *range(2, 2 + space), 1, *range(2 + space, 2 + 2 * space)]
    windows = windows[(slice(None), slice(None), *[slice(0, size) for size in output_space])]
    return windows.permute(order).reshape(inputs.shape[0], output_space.numel(), -1)
