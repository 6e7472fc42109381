"""Gram matrices of what the positions of a convolution see, without writing out what they see.

Position t of an axis sees the inputs t·s + κ·δ for κ below the kernel's size k (stride s, dilation δ). The windows of
two positions have the inner product Σ_κ ⟨x[t·s + κ·δ], x[t'·s + κ·δ]⟩: a sum of entries of the Gram matrix of the
inputs themselves, moved along its diagonal. That matrix costs as much as one κ, and for several axes the sum runs over
one axis after the other. Entries whose places differ modulo the stride never meet, so inputs are taken apart by it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of a convolution: how many positions it has, and where they see."""

    positions: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def phases(self) -> dict[int, list[int]]:
        """For each residue modulo the stride that is seen, by how many strides its inputs are ahead of t·s."""
        shifts: dict[int, list[int]] = {}
        for place in range(0, self.kernel * self.dilation, self.dilation):
            shifts.setdefault(place % self.stride, []).append(place // self.stride)
        return shifts

    @property
    def extent(self) -> int:
        """How many (padded) inputs are seen."""
        return (self.positions - 1) * self.stride + (self.kernel - 1) * self.dilation + 1


def window_gram(inputs: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    """Return `[B, T, T]`, the inner products of what positions see in `inputs`, `[B, d, *space]`."""
    seen = F.pad(inputs, [amount for axis in reversed(axes) for amount in _margins(axis, inputs, axes)])
    batch, channels = inputs.shape[:2]
    total: Tensor | None = None
    for residues in itertools.product(*(axis.phases for axis in axes)):
        shifts = [axis.phases[residue] for residue, axis in zip(residues, axes, strict=True)]
        lengths = [axis.positions + max(ahead) for axis, ahead in zip(axes, shifts, strict=True)]
        places = [
            slice(residue, residue + (length - 1) * axis.stride + 1, axis.stride)
            for residue, length, axis in zip(residues, lengths, axes, strict=True)
        ]
        part = seen[(slice(None), slice(None), *places)].reshape(batch, channels, -1)
        gram = torch.bmm(part.mT, part).view(batch, *lengths, *lengths)
        for number, (axis, ahead) in enumerate(zip(axes, shifts, strict=True)):
            gram = _moved_sum(gram, 1 + number, 1 + number + len(axes), axis.positions, ahead)
        total = gram if total is None else total.add_(gram)
    assert total is not None
    positions = total.shape[1 : 1 + len(axes)].numel()
    return total.reshape(batch, positions, positions)


def window_gram_cost(channels: int, axes: tuple[Axis, ...]) -> tuple[int, int]:
    """Return what `window_gram` takes for one example: multiply-adds, and values that are moved."""
    products = moved = 0
    for residues in itertools.product(*(axis.phases for axis in axes)):
        shifts = [axis.phases[residue] for residue, axis in zip(residues, axes, strict=True)]
        lengths = [axis.positions + max(ahead) for axis, ahead in zip(axes, shifts, strict=True)]
        size = torch.Size(lengths).numel() ** 2
        products += channels * size
        for axis, ahead, length in zip(axes, shifts, lengths, strict=True):
            size = size // length**2 * axis.positions**2
            moved += len(ahead) * size
    return products, moved


def _margins(axis: Axis, inputs: Tensor, axes: tuple[Axis, ...]) -> tuple[int, int]:
    """Return the zeros before and after the inputs of an axis; negative where inputs at the end are not seen."""
    size = inputs.shape[2 + axes.index(axis)]
    return axis.padding, axis.extent - axis.padding - size


def _moved_sum(gram: Tensor, first: int, second: int, positions: int, shifts: list[int]) -> Tensor:
    """Return Σ over shifts of the block of `positions` places that begins there, along both dimensions."""
    blocks = [gram.narrow(first, shift, positions).narrow(second, shift, positions) for shift in shifts]
    if len(blocks) == 1:
        return blocks[0]
    total = blocks[0] + blocks[1]
    for block in blocks[2:]:
        total += block
    return total
