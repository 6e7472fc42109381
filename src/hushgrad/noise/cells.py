"""In which cell of a grid a normal value lies, decided without rounding: the law of rounded Gaussian noise.

A normal value is drawn by the strips of `hushgrad.noise.strips`, and cell k is what `ratio · z` rounds to: the grid has
`ratio` cells to a standard deviation. A word of 64 bits says on which of 2**48 positions of a strip z lies; the
positions are intervals, and nearly all lie in one cell. Float64 finds that cell, and it also finds where it may err: a
position that reaches to within `margin(ratio)` of the edge of a cell gets 64 bits more, and is decided with whole
numbers.

What the strips leave of the density lies in boxes on top of them, and beyond the last strip in boxes down the tail. A
box is picked by a whole number of the 2**64 words. Its height is made from that number, so that it is picked exactly as
often as its area says. A point in it is accepted below the density, by float64 where that is certain, and else by
decimal numbers of 60 digits.

Guarantee: the law of the cells differs from that of rounded Gaussian noise by at most `distance(ratio)` in total
variation, for words that are independent and uniform.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hushgrad.noise.strips import INDEX_BITS, PICKS, Float64s, density, strips

MOST_CELLS = 2.0**32
"""The largest `ratio`: beyond it too many positions would be decided with whole numbers."""

CANDIDATE_WORDS = 6
"""Words of a candidate of the remainder: a box, two for a place across it, two for one up, and a sign."""

_POSITION_BITS = 64 - INDEX_BITS
_EDGE_BITS = 80  # edges are whole numbers of 2**-80
_TAIL_WIDTH, _TAIL_BOXES = 2.0**-5, 288  # from 3.75 to 12.75
_SLACK = 1 << 13  # words that a box may have too many: eight times the rounding of its area
_DIGITS = Context(prec=70)
_ROOT = Decimal("0.398942280401432677939946059934381868475858631164934657665925829670657926")  # 1 / √(2π)
_CERTAIN = Decimal(10) ** -60
_STRIP_AREA = Fraction(1, PICKS)

Words = NDArray[Any]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """The boxes of one side: on top of each strip, then down the tail.

    Attributes:
        edges: [K + 1]; box k covers [edges[k], edges[k + 1]], whose width is exact in float64.
        widths: [K].
        strip_area: [K], the area below the box that the strip takes: 2**-16, in the tail 0.
        words: [K], how many of the 2**64 words pick the box.
        ends: [K], the running sum of `words`; a word beyond the last one picks none.
        unit: the area of a box for each word.
    """

    edges: Float64s
    widths: Float64s
    strip_area: Float64s
    words: NDArray[np.uint64]
    ends: NDArray[np.uint64]
    unit: float


@cache
def boxes() -> Boxes:
    """Return the boxes, computed once in a process.

    Guarantee: no box is lower than the density inside of it, and each is picked in exact proportion to its area.
    """
    edges = strips().edges
    tail = edges[-1] + _TAIL_WIDTH * np.arange(1, _TAIL_BOXES + 1)
    edges = np.concatenate([edges, tail])
    widths = np.diff(edges)  # exact: a right end is at most twice its left one
    strip_area = np.zeros(len(widths))
    strip_area[: strips().count] = 1 / PICKS
    areas = density(edges[:-1]) * widths - strip_area  # the density falls, so it is highest at the left
    unit = float(areas.sum()) * (1 + 2.0**-20) * 2.0**-64
    words = np.ceil(areas / unit).astype(np.uint64) + np.uint64(_SLACK)
    return Boxes(edges, widths, strip_area, words, np.cumsum(words), unit)


def farthest() -> float:
    """Return the largest possible `abs(z)`."""
    return float(boxes().edges[-1])


def margin(ratio: float) -> float:
    """Return how near to the edge of a cell float64 may err, in cells.

    A value on a strip is below 4. The table, the sum and the product with `ratio` round by at most 2**-52 four times
    and 2**-51 once, and a position is narrower than 2**-52: less than 2**-49 together.
    """
    return ratio * 2.0**-48


def distance(ratio: float) -> float:
    """Return a bound on the distance in total variation of one value's law from that of rounded Gaussian noise.

    The mass beyond `farthest()`; and for the edge of each cell in each strip or box one of the finest positions, which
    has 2**-112 of a strip of area 2**-16, or 2**-128 of a box. Twice that, for what is left of a box's height.
    """
    edges = 2 * (farthest() * ratio + 2) + 2 * len(boxes().widths)
    from scipy.special import ndtr  # on use: it takes a tenth of a second to import

    return 2.0 * float(ndtr(-farthest())) + 2 * edges * 2.0**-128


def cells_of_positions(words: Words, further: Words, ratio: float) -> Float64s:
    """Return the cells of positions on strips, with whole numbers.

    Args:
        words: [n] signed 64-bit words that pick a strip.
        further: [n] unsigned 64-bit words, the position's next bits.
        ratio: cells to a standard deviation.
    """
    return np.array([_cell_of(int(word), int(bits), ratio) for word, bits in zip(words, further, strict=True)], float)


def _cell_of(word: int, further: int, ratio: float) -> int:
    count, edges = strips().count, strips().edges
    pick = word & (PICKS - 1)
    sign, strip = (1, pick) if pick < count else (-1, pick - count)
    position = (word >> INDEX_BITS) + (1 << (_POSITION_BITS - 1))
    return sign * _cell_at(edges, strip, position << 64 | further, _POSITION_BITS + 64, ratio)


def _place(edges: Float64s, box: int, position: int, bits: int) -> tuple[int, int]:
    """Return the middle of one of 2**bits positions across a box: a whole number, and how often 2 divides it."""
    left, right = (int(float(edge) * 2.0**_EDGE_BITS) for edge in edges[box : box + 2])
    return (left << bits + 1) + (right - left) * (2 * position + 1), _EDGE_BITS + bits + 1


def _cell_at(edges: Float64s, box: int, position: int, bits: int, ratio: float) -> int:
    """Return the cell of a position across a box."""
    place, halvings = _place(edges, box, position, bits)
    cells, parts = float(ratio).as_integer_ratio()
    parts <<= halvings
    return (2 * place * cells + parts) // (2 * parts)


def judged(candidates: NDArray[np.uint64], ratio: float) -> tuple[Float64s, Bools]:
    """Return the cell that each candidate of the remainder stands for, and which of them are accepted.

    Args:
        candidates: [n, CANDIDATE_WORDS] independent uniform 64-bit words.
        ratio: cells to a standard deviation.
    """
    found = boxes()
    box = np.searchsorted(found.ends, candidates[:, 0], side="right")
    is_box = box < len(found.ends)
    box = np.minimum(box, len(found.ends) - 1)
    left, width = found.edges[box], found.widths[box]
    x = left + _share(candidates[:, 1]) * width
    height = found.words[box].astype(np.float64) * found.unit
    below = density(x) * width
    room = below - found.strip_area[box] - _share(candidates[:, 3]) * height
    accepted = room > 0
    # x² rounds in the density's exponent, which is below 82; float64 words round to 53 bits.
    for row in np.flatnonzero(np.abs(room) <= 2.0**-41 * below + 2.0**-50 * height).tolist():
        accepted[row] = _is_below(found, int(box[row]), candidates[row])
    value = x * ratio
    cells = np.rint(value)
    for row in np.flatnonzero(np.abs(value - cells) > 0.5 - 4 * margin(ratio)).tolist():  # a value below 16
        across = int(candidates[row, 1]) << 64 | int(candidates[row, 2])
        cells[row] = _cell_at(found.edges, int(box[row]), across, 128, ratio)
    return np.where(candidates[:, 5] & np.uint64(1), -cells, cells), accepted & is_box


def _share(words: NDArray[np.uint64]) -> Float64s:
    return (words.astype(np.float64) + 0.5) * 2.0**-64


def _is_below(found: Boxes, box: int, candidate: NDArray[np.uint64]) -> bool:
    """Return whether a point in a box lies below the density, by decimal numbers; not where even these cannot tell."""
    across, up = (int(candidate[place]) << 64 | int(candidate[place + 1]) for place in (1, 3))
    place, halvings = _place(found.edges, box, across, 128)
    x = Fraction(place, 1 << halvings)
    width = Fraction(float(found.widths[box]))
    area = _STRIP_AREA if found.strip_area[box] else Fraction(0)
    height = int(found.words[box]) * Fraction(found.unit) * Fraction(2 * up + 1, 2 << 128)
    needed = _decimal((height + area) / width)
    return _DIGITS.multiply(_ROOT, _decimal(-x * x / 2).exp(_DIGITS)) - needed > _CERTAIN


def _decimal(value: Fraction) -> Decimal:
    return _DIGITS.divide(Decimal(value.numerator), Decimal(value.denominator))
