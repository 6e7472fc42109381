"""Are rows chosen as noised counts choose them? Which rows pass in many steps, against the law of the noise.

All p-values are those of exact binomial laws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.verdict import Cause, Check, failed_codes

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class UntouchedReading:
    """What steps that touch no row show.

    Attributes:
        checks: how many rows pass, and whether other ones do in each step.
        std: the standard deviation of the noise on a count, as measured; NaN where no row passed, or all.
        reach: its relative error, at the false alarm of the checks.
    """

    checks: tuple[Check, ...]
    std: float
    reach: float


def read_untouched(
    chosen: Sequence[Rows], *, rows: int, threshold: float, std: float, false_alarm: float
) -> UntouchedReading:
    """Read the rows that were chosen in steps without records, whose noised counts are noise alone.

    Args:
        chosen: of each step.
        rows: how many there are.
        threshold: what a count had to be above, greater than 0.
        std: the claimed standard deviation of the noise on a count.
        false_alarm: of each of the two checks.
    """
    p, trials = float(stats.norm.sf(threshold / std)), rows * len(chosen)
    found = sum(len(step) for step in chosen)
    share = found / trials
    often = st.count_p(found, trials, p)
    reach_of_p = float(-st.ndtri(false_alarm / 2)) * math.sqrt(p * (1 - p) / trials)
    reach = reach_of_p / (float(stats.norm.pdf(threshold / std)) * threshold / std)
    measured = threshold / float(stats.norm.isf(share)) if 0 < share < 0.5 else math.nan
    pairs = list(zip(chosen[::2], chosen[1::2], strict=False))
    both = sum(len(np.intersect1d(one, two)) for one, two in pairs)
    again = st.count_p(both, rows * len(pairs), share * share)  # by how many passed: how many should is another check
    in_range = all(len(step) == len(np.unique(step)) and bool(((step >= 0) & (step < rows)).all()) for step in chosen)
    return UntouchedReading(
        (
            Check(
                code="rows-untouched",
                part="noise",
                claim="rows that no record touches pass the threshold as often as noise on all counts lets them",
                measured=f"{found} of {trials}, {p * trials:.6g} expected",
                passed=often >= false_alarm and in_range,
                sample_size=trials,
                statistic=share,
                p_value=often,
                false_alarm=false_alarm,
                power=f"{2 * reach:.2%} difference of the noise on counts",
            ),
            Check(
                code="rows-independent",
                part="noise",
                claim="other untouched rows pass in each step",
                measured=f"{both} in both of two neighbouring steps, {share * share * rows * len(pairs):.6g} expected",
                passed=again >= false_alarm,
                sample_size=max(1, rows * len(pairs)),
                statistic=float(both),
                p_value=again,
                false_alarm=false_alarm,
                power="noise that is drawn again",
            ),
        ),
        measured,
        reach,
    )


def read_touched(
    chosen: Sequence[Rows], *, counts: Mapping[int, float], threshold: float, std: float, false_alarm: float
) -> Check:
    """Compare how often the rows passed that a batch touches with what noise on their counts lets through.

    Args:
        chosen: of each step over one and the same batch.
        counts: of the rows that it touches, without noise.
        threshold: what a noised count had to be above.
        std: the claimed standard deviation of the noise on a count.
        false_alarm: of this check.
    """
    steps, numbers = len(chosen), np.array(sorted(counts))
    found = np.sum([np.isin(numbers, step) for step in chosen], 0)
    wanted = stats.norm.sf((threshold - np.array([counts[int(number)] for number in numbers])) / std)
    each = [st.count_p(int(times), steps, float(p)) for times, p in zip(found, wanted, strict=True)]
    worst = min(each) * len(each)
    return Check(
        code="rows-touched",
        part="noise",
        claim="rows that records touch pass the threshold as often as noise on their counts lets them",
        measured=f"{int(np.sum(found))} of {steps * len(numbers)}, {steps * float(wanted.sum()):.6g} expected",
        passed=worst >= false_alarm,
        sample_size=steps * len(numbers),
        statistic=float(np.abs(found - steps * wanted).max()) / steps,
        p_value=min(1.0, worst),
        false_alarm=false_alarm,
        power="counts without noise, or with much less or more of it",
    )


def read_counts(found: Mapping[int, tuple[bool, bool]]) -> Check:
    """Tell whether counts without noise are those of the reference: each passes just below it, and not just above.

    Args:
        found: for each row that a batch touches whether it passed a threshold below its count and one above it.
    """
    wrong = sum(passed != (True, False) for passed in found.values())
    return Check(
        code="rows-counts",
        part="sensitivity",
        claim="what records add to the counts of rows is clipped as the rule says",
        measured=f"{len(found) - wrong} of {len(found)} counts are those of the reference",
        passed=wrong == 0 and bool(found),
        sample_size=max(1, len(found)),
        power="every difference above a part in 1,000",
    )


def read_charge(*, charged: float, measured: float, room: float, sample_size: int, false_alarm: float) -> Check:
    """Compare the charge with what gradients and counts cost together, by the noise that was measured on both."""
    return Check(
        code="rows-charge",
        part="ledger",
        claim="the charged noise multiplier is that of gradients and counts together",
        measured=f"{charged:.5g} charged, {measured:.5g} measured",
        passed=bool(abs(measured / charged - 1) <= room),
        sample_size=sample_size,
        statistic=measured / charged,
        false_alarm=false_alarm,
        power=f"{2 * room:.2%} difference",
    )


_CAUSES: dict[str, Cause] = {
    "rows-independent": Cause(
        "row-noise-repeated", "the noise on counts comes again in later steps.", "draw it anew in each step."
    ),
    "rows-counts": Cause(
        "row-counts-not-clipped",
        "a record adds more, or something else, to the counts of rows than the rule says, so that their noise is made "
        "for less.",
        "clip the map of the rows that a record touches by its L2 norm over all tables.",
    ),
    "rows-touched": Cause(
        "row-counts-without-noise",
        "rows are chosen by counts without the noise that is charged, so that the choice shows who was in the batch.",
        "add noise to the count of every row before it is compared with the threshold.",
    ),
    "rows-untouched": Cause(
        "untouched-rows-left-out",
        "rows that no record touched do not pass as often as noise on their counts would let them, so that the rows of "
        "an update show which were touched.",
        "let each untouched row pass with the probability that its noise is above the threshold.",
    ),
    "rows-charge": Cause(
        "row-counts-not-charged",
        "the charge is not that of gradients and counts together.",
        "give the gradients noise of σ_g = (σ⁻² − σ_c⁻²)^(−½), where counts have noise of σ_c.",
    ),
}


def row_causes(checks: Sequence[Check]) -> list[Cause]:
    """Return what the failed checks of chosen rows say about the mistake, the likeliest first."""
    failed = failed_codes(checks)
    return [cause for code, cause in _CAUSES.items() if code in failed]


def as_rows(values: Any) -> Rows:
    """Return numbers of rows as an array."""
    return np.asarray(values, dtype=np.int64)
