"""The normal distribution as an exact mixture: thin strips of equal area, and a small remainder.

Under the density φ lie 2·N rectangles of equal area 2**-16, N on each side, next to each other: strip k covers
[x_k, x_(k+1)] up to the height h_k = 2**-16 / (x_(k+1) - x_k) ≤ φ(x_(k+1)). So with probability 2N / 2**16 a normal
value is uniform on a strip that is picked uniformly; otherwise it is distributed as what the rectangles leave of φ:
thin slivers above them, and the tails. Nothing is approximated.

This is a relative of the ziggurat (Marsaglia & Tsang, 2000). A ziggurat stacks *horizontal* layers of equal area that
reach beyond the density, so each draw compares its point with the layer above, and sometimes with the density. Strips
stand *upright* below the density: every point in one is accepted, and no draw from a strip is tested or rejected. The
price is the remainder, which has to be drawn by itself.

Nearly every value takes one random word, one look-up, one multiplication and one addition; one in 4,000 takes the slow
way through the remainder, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

INDEX_BITS = 16
PICKS = 1 << INDEX_BITS

# Strips get wide in the tail, and with them the spacing of the values that a word can give: here 7e-7 at the most.
OUTERMOST = 3.75

Float64s = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Strips:
    """The strips of one side.

    Attributes:
        edges: [N + 1], rising from 0; strip k is [edges[k], edges[k + 1]].
        heights: [N], the density of strip k, at most φ(edges[k + 1]).
        boxes: [N + 1], rising: Σ over strips up to k of the area of the box from heights[k] to φ(edges[k]), then with
            the area of the tail beyond edges[N] added. The remainder of one side lies in these boxes and the tail.
    """

    edges: Float64s
    heights: Float64s
    boxes: Float64s

    @property
    def count(self) -> int:
        """N, the number of strips of one side. Picks from 2·N on stand for the remainder."""
        return len(self.heights)


def density(x: Float64s) -> Float64s:
    """φ(x), the standard normal density."""
    result: Float64s = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return result


@cache
def strips() -> Strips:
    """Return the strips, computed once in a process (5 ms).

    Guarantee: no strip reaches above the density, so strips and remainder together are exactly the distribution.
    """
    from scipy.special import ndtr, ndtri  # on use: it takes a tenth of a second to import

    # Where strip k must begin for it to have the area 2**-16: φ falls by the factor 1 - x·w over a strip of width w,
    # so the first k strips lie below an area of k / 2**16 + x²/4 / 2**16, to first order in w. A little more is given,
    # also for rounding.
    index = np.arange(PICKS // 2, dtype=np.float64) * (1 + 1e-8)
    edges: Float64s = ndtri(0.5 + index / PICKS)
    for _ in range(6):
        excess = PICKS * (ndtr(edges) - 0.5) - 0.27 * edges**2 - index
        edges = edges - excess / (PICKS * density(edges) - 0.54 * edges)
        edges = np.clip(edges, 0.0, OUTERMOST + 0.1)
    edges = edges[edges <= OUTERMOST]
    widths = np.diff(edges)
    heights = 1 / (PICKS * widths)
    slivers = widths * (density(edges[:-1]) - heights)
    boxes = np.cumsum(np.append(slivers, ndtr(-edges[-1])))
    return Strips(edges, heights, boxes)


@cache
def pick_table(bits: int) -> NDArray[np.void]:
    """Return for each pick i in [0, 2**16) what turns a signed word w ending in i into a value: middle + slope · w.

    Args:
        bits: of a word, 32 for float32 values and 64 for float64 values.

    Returns:
        [2**16] pairs ("middle", "slope"): strips to the right of 0, strips to the left of it, then zeros for the
        remainder. A word's lowest 16 bits pick the strip, and the word as a whole, over 2**bits, is the position in
        it; the middle is shifted for the positions that words ending in i can have, so that they are centred.
    """
    real = np.float32 if bits == 32 else np.float64
    right = strips()
    middle, slope = np.zeros(PICKS), np.zeros(PICKS)
    middles, widths = (right.edges[1:] + right.edges[:-1]) / 2, np.diff(right.edges)
    for side, begin in ((1.0, 0), (-1.0, right.count)):
        middle[begin : begin + right.count] = side * middles
        slope[begin : begin + right.count] = side * widths * 2.0**-bits
    middle -= slope * (np.arange(PICKS) - PICKS / 2 + 0.5)
    table = np.zeros(PICKS, dtype=[("middle", real), ("slope", real)])
    table["middle"], table["slope"] = middle, slope
    return table


def remainder(candidates: NDArray[np.uint64]) -> Float64s:
    """Return values distributed as what the strips leave of the normal distribution, by rejection.

    Args:
        candidates: [n, 3] independent uniform 64-bit words. The first chooses box and sign, the others a point in it.

    Returns:
        The accepted values, in order; about three in four candidates.

    Guarantee: the tail is drawn from 64 bits of its own; the largest possible `abs(z)` is 10.1.
    """
    values, is_accepted = accept_reject(candidates)
    return values[is_accepted]


def accept_reject(candidates: NDArray[np.uint64]) -> tuple[Float64s, NDArray[np.bool_]]:
    """Return what each candidate of `remainder` stands for, and which of them are accepted."""
    from scipy.special import ndtr, ndtri

    right = strips()
    first, across, up = candidates[:, 0], *_open_unit_interval(candidates[:, 1:]).T
    sign = np.where(first & np.uint64(1), -1.0, 1.0)
    share = (first >> np.uint64(11)).astype(np.float64) * 2.0**-53
    box = np.searchsorted(right.boxes[:-1], share * right.boxes[-1], side="right")
    is_tail = box == right.count
    strip = np.minimum(box, right.count - 1)
    left, height = right.edges[strip], right.heights[strip]
    x = left + across * (right.edges[strip + 1] - left)
    accepted = up * (density(left) - height) < density(x) - height
    x[is_tail] = -ndtri(across[is_tail] * ndtr(-right.edges[-1]))
    return sign * x, accepted | is_tail


def _open_unit_interval(words: NDArray[np.uint64]) -> Float64s:
    """Return (word + 1/2) / 2**64, which rounding may take to 1 but never to 0."""
    return (words.astype(np.float64) + 0.5) * 2.0**-64
