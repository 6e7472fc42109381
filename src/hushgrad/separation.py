"""Are losses `[B]` separate: does each depend on its own rows of the outputs alone? Asked of their graph, for all rows.

With weights w, the gradient of Σ w_i·ℓ_i by row j is w_j times that of Σ ℓ_i, for every w, if and only if no loss
depends on another example's row. The weights are powers of two: they scale what a row alone computes without rounding.
Where the gradients differ nevertheless, those rows are asked for what comes from other losses, which must be exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hushgrad.errors import HushgradError, UnsupportedModelError, where_raised

CLASSES = 32
"""So many weights there are, 2¹⁶ to 2⁻¹⁵ (few examples get such as are far apart). Up to so many examples two backwards
tell all of them apart, three up to its square."""

CLASSES_OF_HALF = 12
"""The same for float16, whose exponents are few."""

SCALE = 2.0**16
"""Suspects are asked with weights so large and so small, too: a hook may change large gradients only, or small ones."""


class Separation:
    """What the graph of losses says of the examples they depend on.

    Args:
        losses: `[B]`, with their graph, which is kept.
        outputs: tensors that the losses may depend on. The examples lie on axis 0 of those with B rows or a multiple,
            or on axis 1 where there are more than two axes.
    """

    def __init__(self, losses: Tensor, outputs: Sequence[Tensor]) -> None:
        self._losses, self._outputs = losses, outputs
        self._size = losses.shape[0]

    def suspects(self) -> list[int]:
        """Return the examples whose rows may get a gradient of other losses, and those where it is not finite."""
        classes = CLASSES_OF_HALF if self._is_half else CLASSES
        largest, apart = (0, 1) if self._is_half else (16, max(1, classes // self._size))
        plain = self._gradients(torch.ones_like(self._losses))
        numbers = torch.arange(self._size, device=self._losses.device)
        found: set[int] = set()
        for digit in range(max(1, math.ceil(math.log(self._size, classes) - 1e-9))):
            weights = torch.exp2((largest - apart * (numbers // classes**digit % classes)).to(self._losses.dtype))
            weighted = self._gradients(weights)
            for tensor, one, other in zip(self._outputs, plain, weighted, strict=True):
                if one is None or other is None:
                    continue
                rows = [_differing(one, other, weights, axis, self._size) for axis in self._axes(tensor)]
                fewest: list[int] = min(rows, key=len, default=[*range(self._size)])
                found.update(fewest)
        return sorted(found)

    def mixes(self, suspects: Sequence[int], silent: frozenset[int]) -> bool:
        """Return whether the row of a suspect gets a gradient of other losses; NaN is none at those that are `silent`.

        They are asked in parts, by each bit of their places, so that any two of them are once in different parts.
        """
        scales = (1.0,) if self._is_half else (1.0, SCALE, 1 / SCALE)
        for bit in range(max(1, (len(suspects) - 1).bit_length())):
            for side in (0, 1):
                part = [example for place, example in enumerate(suspects) if place >> bit & 1 == side]
                if part and any(self._reaches(part, silent, s) or self._is_moved(part, silent, s) for s in scales):
                    return True
        return False

    def spoiled(self) -> frozenset[int]:
        """Return the examples at which even a gradient of zeros becomes NaN."""
        found: set[int] = set()
        gradients = self._gradients(torch.zeros_like(self._losses))
        for tensor, gradient in zip(self._outputs, gradients, strict=True):
            if gradient is not None:
                nan = [_rows_of(gradient, axis, self._size).isnan().any(1) for axis in self._axes(tensor)]
                found |= min(({int(row) for row in rows.nonzero()} for rows in nan), key=len, default=set())
        return frozenset(found)

    def finite(self) -> frozenset[int]:
        """Return the examples whose loss and outputs are finite."""
        found = {int(row) for row in self._losses.isfinite().nonzero()}
        for tensor in self._outputs:
            for axis in self._axes(tensor)[:1]:
                found &= {int(row) for row in _rows_of(tensor.detach(), axis, self._size).isfinite().all(1).nonzero()}
        return frozenset(found)

    def is_in_another_order(self) -> bool:
        """Return whether each loss depends on one row alone, and not all on their own: rows were sorted, say."""
        plain = self._gradients(torch.ones_like(self._losses))
        numbers = torch.arange(self._size, device=self._losses.device)
        owners = [0] * self._size
        for digit in range(max(1, math.ceil(math.log(self._size, CLASSES_OF_HALF) - 1e-9))):
            place = CLASSES_OF_HALF**digit
            weights = torch.exp2(-(numbers // place % CLASSES_OF_HALF).to(self._losses.dtype))
            for one, other in zip(plain, self._gradients(weights), strict=True):
                if one is None or other is None or one.shape[0] != self._size:
                    return False
                for row, (given, weighted) in enumerate(zip(one.flatten(1), other.flatten(1), strict=True)):
                    shares = (weighted / given)[given != 0].double().unique()
                    if len(shares) != 1 or not bool(shares.log2().frac() == 0):
                        return False
                    owners[row] += place * int(-shares.log2())
        return owners != [*range(self._size)] and sorted(owners) == [*range(self._size)]

    def _reaches(self, examples: Sequence[int], silent: frozenset[int], scale: float) -> bool:
        """Whether the losses of all others have a gradient at the rows of these examples."""
        rows = torch.tensor(examples, device=self._losses.device)
        gradients = self._gradients(torch.full_like(self._losses, scale).index_fill(0, rows, 0))
        quiet = torch.tensor([example in silent for example in examples], device=self._losses.device)
        return any(
            gradient is not None
            # A state of a recurrent layer has its examples on axis 1; a matrix over all pairs has them on both.
            and not any(
                _is_zero(_rows_of(gradient, axis, self._size)[rows.to(gradient.device)], quiet.to(gradient.device))
                for axis in self._axes(tensor)
            )
            for tensor, gradient in zip(self._outputs, gradients, strict=True)
        )

    def _is_moved(self, examples: Sequence[int], silent: frozenset[int], scale: float) -> bool:
        """Whether the rows of these examples get another gradient when the losses of all others count half.

        A hook that scales the gradients of a batch by their norm gives no row a gradient of another loss.
        """
        rows = torch.tensor(examples, device=self._losses.device)
        halved = torch.full_like(self._losses, 0.5 * scale).index_fill(0, rows, scale)
        plain, other = self._gradients(torch.full_like(self._losses, scale)), self._gradients(halved)
        quiet = torch.tensor([example in silent for example in examples], device=self._losses.device)
        for tensor, one, two in zip(self._outputs, plain, other, strict=True):
            if one is None or two is None:
                continue
            same = [
                _is_close(
                    _rows_of(one, axis, self._size)[rows.to(one.device)],
                    _rows_of(two, axis, self._size)[rows.to(two.device)],
                    quiet.to(one.device),
                )
                for axis in self._axes(tensor)
            ]
            if not any(same):
                return True
        return False

    def _gradients(self, weights: Tensor) -> Sequence[Tensor | None]:
        try:
            return torch.autograd.grad(self._losses, self._outputs, weights, retain_graph=True, allow_unused=True)
        except (HushgradError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"a backward of the losses fails ({where_raised(error)}) when some of them count less or nothing, so "
                f"that it cannot be told whether they are separate",
                cure="Let hooks and custom autograd functions take any gradients, those of zeros included",
            ) from None

    @property
    def _is_half(self) -> bool:
        return torch.float16 in {self._losses.dtype, *(tensor.dtype for tensor in self._outputs)}

    def _axes(self, tensor: Tensor) -> list[int]:
        return [axis for axis in ([0, 1] if tensor.ndim > 2 else [0]) if tensor.shape[axis] % self._size == 0]


def _rows_of(gradient: Tensor, axis: int, size: int) -> Tensor:
    """Return `[B, values]`: what belongs to each example."""
    return gradient.movedim(axis, 0).reshape(size, -1)


def _differing(plain: Tensor, weighted: Tensor, weights: Tensor, axis: int, size: int) -> list[int]:
    """Return the examples whose weighted gradient is not their plain one times their weight."""
    factors = weights.to(plain.device, plain.dtype).unsqueeze(1)
    same = (_rows_of(plain, axis, size) * factors == _rows_of(weighted, axis, size)).all(1)
    return [int(row) for row in same.logical_not().nonzero()]


def _is_zero(rows: Tensor, quiet: Tensor) -> bool:
    return bool(((rows == 0) | (rows.isnan() & quiet.unsqueeze(1))).all())


def _is_close(one: Tensor, two: Tensor, quiet: Tensor) -> bool:
    """Whether rows are the same up to rounding; those that are `quiet`, or not finite, say nothing."""
    told = one.isfinite().all(1) & two.isfinite().all(1) & quiet.logical_not()
    difference, size = (one - two).abs().amax(1), one.abs().amax(1)
    return bool((difference[told] <= 1e-3 * size[told]).all()) if one.shape[1] else True
