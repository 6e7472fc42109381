"""Are updates functions of whole numbers, as noise on a grid makes them?

An update that is k · g / divisor of a whole number k, rounded to its dtype, tells k where it is small: for float32
below 2**22, which is one value in some thousand, for float64 nearly everywhere. Floating-point numbers in between, of
which there are several from one k to the next, come from noise that was not on the grid, from a sum that was not, or
from a sum and noise that were divided before they were added. What is wrong by less than the dtype shows is not found:
a division in float64 of each, before a rounding to float32, for instance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hushgrad.checks.verification.checks.independence import Array, Draw
from hushgrad.checks.verification.verdict import Cause, Check

ENOUGH = 32
"""Values that tell their whole number, from which on an update off the grid is missed less often than once in 1e9."""

OFF_THE_GRID = Cause(
    "noise-off-the-grid",
    "updates are no functions of whole numbers: the sum or its noise is not on the grid, or both were divided before "
    "they were added.",
    "round the sum in float64 to multiples of g, add whole numbers of g as noise, and divide once, at the end.",
)


def told(values: Array, spacing: float, divisor: float) -> tuple[int, int]:
    """Return how many values tell the whole number that they would come from, and how many come from none."""
    flat = np.ascontiguousarray(values).ravel()
    cells = flat.astype(np.float64) * divisor / spacing
    cells = np.where(np.isfinite(cells), cells, 0.5)
    flat = flat[np.abs(cells) <= 2.0 ** (np.finfo(flat.dtype).nmant - 1)]
    cells = np.rint(flat.astype(np.float64) * divisor / spacing)
    return len(flat), int((flat != (cells * spacing / divisor).astype(flat.dtype)).sum())


def on_grid(code: str, claim: str, updates: Sequence[Draw], spacing: float, divisor: float, word_bits: int) -> Check:
    """Compare updates with those that whole numbers make; `word_bits` is the width of the narrowest one."""
    counts = [told(value, spacing, divisor) for update in updates for value in update.values()]
    tested, off = (sum(column) for column in zip(*counts, strict=True))
    if word_bits == 16:
        return Check(
            code=code, part="noise", claim=claim, measured="not visible in 16-bit values", passed=True, sample_size=0
        )
    return Check(
        code=code,
        part="noise",
        claim=claim,
        measured=f"{tested - off} of {tested} values that tell their whole number come from one",
        passed=off == 0 and tested > 0,
        sample_size=max(1, tested),
        statistic=float(off),
        power="noise off the grid, a sum off the grid, and divisions that come too early and show in the dtype"
        if tested >= ENOUGH
        else f"little: {tested} values tell their whole number, {ENOUGH} are enough",
    )
