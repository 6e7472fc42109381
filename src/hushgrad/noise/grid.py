"""Noise that floating point cannot betray: a sum is rounded to a grid, and gets noise on that grid.

With an ideal normal Z, round(T + Z) = T + round(Z) for a T on the grid: the release is that of the Gaussian mechanism,
rounded, and so costs what that costs. Here T is the sum in float64, rounded to multiples of g; the cell k of the noise
is drawn as `hushgrad.noise.cells` says; T/g + k is a whole number, exact in float64 below 2**53. What is handed out,
(T/g + k) · g / divisor, is computed from this whole number alone: the product with a power of two is exact, the
division is rounded once. So a release says nothing of how the sum was made beyond that number, in its low bits or
elsewhere, and every number that one data set can release another can release, too, up to the cut tails.

Ordinary noise is not like this: which floating-point numbers fl(fl(s + noise) / divisor) can be depends on s.

On devices other than the CPU noise is drawn on the CPU, and the same operations are torch's: the same values.

Guarantee: what is handed out is a function of the sum's cell plus the noise's cell, and of public constants.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushgrad.arguments import non_negative_number, positive_number
from hushgrad.errors import InvalidArgumentError, ProtocolError
from hushgrad.noise.backends import Bits
from hushgrad.noise.cells import CANDIDATE_WORDS, MOST_CELLS, cells_of_positions, judged
from hushgrad.noise.chunks import Workers, remainders, run_chunks
from hushgrad.noise.compiled import fastest_grid_backend
from hushgrad.noise.cuda import dispatch
from hushgrad.noise.gaussian import Noised
from hushgrad.noise.grid_backends import WORD, Grid, GridBackend, LeftOut
from hushgrad.noise.strips import PICKS, Float64s, pick_table, strips
from hushgrad.randomness import BLOCK_BYTES, Address, KeyStream

_FURTHER_OFFSET = 1 << 61  # bytes into an address, where positions near the edge of a cell get further bits

_idle: dict[np.dtype[Any], deque[GridBackend]] = {WORD: deque()}


def grid_updates(
    parts: Sequence[Noised], *, noise_std: float, spacing: float, divisor: float, stream: KeyStream
) -> list[Tensor]:
    """Return `(round(total / g) + k) · g / divisor` for each total, k the cells of noise of standard deviation std / g.

    Args:
        parts: the totals, in float64, as `noisy_updates` takes them.
        noise_std: standard deviation of the noise on the sum, in units of the gradient. 0 adds nothing and rounds
            nothing.
        spacing: g, a power of two in units of the gradient, between noise_std / 2**32 and noise_std.
        divisor: a public constant.
        stream: the source of bits.

    Guarantee: what is handed out is a function of the sum's cell plus the noise's cell, and of public constants.

    Raises `InvalidArgumentError` for a total of another dtype, or a spacing that is no power of two in that range.
    """
    std, denominator = non_negative_number("noise_std", noise_std), positive_number("divisor", divisor)
    for part in parts:
        _require_float64(part)
    if std == 0:
        return [part.total.div_(denominator) if part.overwrite else part.total / denominator for part in parts]
    grid = Grid(_power_of_two(spacing, std), std / spacing, denominator)
    updates: list[Tensor] = []
    draws: list[_Draw] = []
    elsewhere: list[tuple[Noised, Tensor]] = []
    for part in parts:
        total = part.total.detach()
        if total.device.type != "cpu":
            if dispatch.is_captured(total):
                raise ProtocolError(
                    "noise would be drawn inside a CUDA graph, and every replay would add the same noise",
                    where="noise",
                    cure="Leave optimizer.step() out of the captured graph",
                )
            cells = torch.zeros(total.shape, dtype=torch.float64)
            draws.append(_Draw(cells.view(-1).numpy(), part.address, None, Grid(1.0, grid.ratio, 1.0)))
            elsewhere.append((part, cells))
            updates.append(cells)
        else:
            updates.append(total if part.overwrite else torch.empty(total.shape, dtype=torch.float64))
            summed = None if part.overwrite else total.reshape(-1).numpy()
            draws.append(_Draw(updates[-1].view(-1).numpy(), part.address, summed, grid))
    _run(draws, stream)
    moved = {id(cells): by_torch(part.total.detach(), cells, grid) for part, cells in elsewhere}
    return [moved.get(id(update), update) for update in updates]


def by_torch(total: Tensor, cells: Tensor, grid: Grid) -> Tensor:
    """Return (round(total / g) + cells) · g / divisor by torch, on the total's device: the same bits."""
    rounded = total.mul(1 / grid.spacing).round_().add_(cells.to(total.device)).add_(0.0)
    return rounded.mul_(grid.spacing).div_(grid.divisor)


def normal_cells(count: int, ratio: float, stream: KeyStream, address: Address) -> NDArray[np.float64]:
    """Return so many cells of standard normal values on a grid of `ratio` cells to a standard deviation."""
    cells = np.zeros(count)
    _run([_Draw(cells, address, None, Grid(1.0, ratio, 1.0))], stream)
    return cells


def _require_float64(part: Noised) -> None:
    if part.total.dtype != torch.float64:
        raise InvalidArgumentError(
            f"must be float64, got {part.total.dtype}", where="total", cure="Sum in float64 (clipped_sums(exact=True))"
        )
    if part.overwrite and not part.total.is_contiguous():
        raise InvalidArgumentError(
            "a total that is overwritten must be contiguous", where="total", cure="Pass total.contiguous()"
        )


def _power_of_two(spacing: float, std: float) -> float:
    value = positive_number("spacing", spacing)
    if math.frexp(value)[0] != 0.5 or not 1 <= std / value <= MOST_CELLS or math.isinf(1 / value):
        raise InvalidArgumentError(
            f"must be a power of two from noise_std / 2**{math.log2(MOST_CELLS):g} to noise_std, got {value:g} for "
            f"{std:g}",
            where="spacing",
            cure="Pass such a power of two",
        )
    return value


@dataclass(frozen=True, slots=True, eq=False)
class _Draw:
    """A sum that gets noise on a grid, written into `into`; without a total, `into` holds it."""

    into: Float64s
    address: Address
    total: Float64s | None
    grid: Grid
    word: np.dtype[Any] = field(default=WORD)

    def chunk(self, start: int, stop: int, backend: GridBackend, stream: KeyStream) -> LeftOut:
        """Write the values in [start, stop) and return what got no noise."""
        total = None if self.total is None else self.total[start:stop]
        left = backend.on_grid(Bits(stream, self.address, start), total, self.into[start:stop], self.grid)
        return LeftOut(start + left.places, left.words.copy(), left.sums.copy())

    def complete(self, left: LeftOut, values: Float64s) -> None:
        """Write the sums that got no noise with the cells of their noise."""
        self.into[left.places] = (left.sums + values + 0.0) * self.grid.spacing / self.grid.divisor


def _run(draws: Sequence[_Draw], stream: KeyStream) -> None:
    pick_table(64)  # made once, before the threads ask for it
    kind = fastest_grid_backend()
    found = run_chunks(draws, stream, Workers(kind, _idle, kind.size, kind.worth_a_thread))
    for ratio in {draw.grid.ratio for draw in draws}:
        mine = [place for place, draw in enumerate(draws) if draw.grid.ratio == ratio]
        _complete([draws[place] for place in mine], [_joined(found[place]) for place in mine], ratio, stream)


def _joined(parts: Sequence[LeftOut]) -> LeftOut:
    empty = LeftOut(np.empty(0, np.intp), np.empty(0, np.int64), np.empty(0))
    return LeftOut(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))


def _complete(draws: Sequence[_Draw], left: Sequence[LeftOut], ratio: float, stream: KeyStream) -> None:
    """Give the values that the chunks left out their noise: the remainder, and positions near the edge of a cell."""
    is_rest = [(part.words & (PICKS - 1)) >= 2 * strips().count for part in left]
    counts, addresses = [int(rest.sum()) for rest in is_rest], [draw.address for draw in draws]
    values = remainders(counts, addresses, stream, lambda rows: judged(rows, ratio), words=CANDIDATE_WORDS)
    for draw, part, rest, further in zip(draws, left, is_rest, values, strict=True):
        cells = np.empty(len(part.places))
        cells[rest] = further
        words = part.words[~rest]
        if len(words):
            bits = np.empty((len(words), BLOCK_BYTES // 8), np.uint64)
            stream.fill(bits, draw.address, offset=_FURTHER_OFFSET)
            cells[~rest] = cells_of_positions(words, bits[:, 0], ratio)
        draw.complete(part, cells)
