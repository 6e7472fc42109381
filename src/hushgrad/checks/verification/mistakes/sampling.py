"""Which known mistake explains draws that are not what is charged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hushgrad.checks.verification.verdict import Cause, Check, failed_codes

# What the measurements say about the kind of mistake ------------------------------------------------------------------


Indices = NDArray[np.int64]

_EXPECTED_AT_LEAST = 20
"""Empty draws, where they are missed."""


def sampling_causes(
    sets: Sequence[Indices], sizes: Indices, count: int, q: float, checks: dict[str, Check]
) -> tuple[Cause, ...]:
    """Return the mistake that fits the draws, given the checks that they failed; none where they passed."""
    failed = failed_codes(checks.values())
    if not failed:
        return ()
    joined = np.concatenate(sets)
    counts = np.bincount(joined[(joined >= 0) & (joined < count)], minlength=count)
    distinct = len({np.sort(draw).tobytes() for draw in sets})
    expected_empty = (1 - q) ** count * len(sets)
    if "sampling-range" in failed:
        return (_cause("sampling-with-replacement"),)
    if "sampling-repeats" in failed and distinct < 0.9 * len(sets):
        return (_cause("sampling-repeated"),)
    full = sizes == np.median(sizes)
    if _takes_turns(sets, count):
        return (_cause("sampling-shuffled"),)
    if "sampling-sizes" in failed and full.mean() > 0.95:
        return (_cause("sampling-fixed-size"),)
    if (counts == 0).sum() > 0.005 * count and "sampling-inclusion" in failed:
        return (_cause("sampling-left-out"),)
    together = checks["sampling-neighbours"]
    by_chance = together.sample_size * (sizes.sum() / (len(sets) * count)) ** 2
    if (
        "sampling-neighbours" in failed
        and abs((together.statistic or 0.0) - by_chance) > 0.2 * by_chance + 6 * by_chance**0.5
    ):
        return (_cause("sampling-blocks"),)
    if expected_empty >= _EXPECTED_AT_LEAST and not (sizes == 0).any():
        return (_cause("sampling-empty-skipped"),)
    largest = int(sizes.max())
    if "sampling-sizes" in failed and (sizes == largest).sum() > 5 + 3 * len(sets) * stats.binom.pmf(largest, count, q):
        return (_cause("sampling-capped"),)
    if "sampling-inclusion" in failed:
        return (_cause("sampling-unequal"),)
    if "sampling-overlaps" in failed and "sampling-rate" not in failed:
        return (_cause("sampling-dependent"),)
    return (_cause("sampling-rate"),) if "sampling-rate" in failed else (_cause("sampling-not-poisson"),)


def _takes_turns(sets: Sequence[Indices], count: int) -> bool:
    """Whether records come again only after most others have come: the signature of passes over the data.

    Of a shuffled pass the first half of N records has no record twice; of Poisson draws about a fifth of N does.
    """
    seen: set[int] = set()
    total = 0
    for draw in sets:
        if total + len(draw) > count // 2:
            break
        total += len(draw)
        seen.update(draw.tolist())
    return total >= 20 and len(seen) == total and total * total / (2 * count) > 12


_WORDS = {
    "sampling-with-replacement": (
        "a draw holds a record twice (drawn with replacement, or duplicated by padding or resumed queues).",
        "draw each record at most once in a logical batch.",
    ),
    "sampling-repeated": (
        "the same batches come again (a sampler seeded anew with a constant, or batches fixed once).",
        "draw every batch afresh, from a generator that is never reset.",
    ),
    "sampling-shuffled": (
        "batches are parts of a shuffled or ordered pass over the data, which is charged as Poisson sampling.",
        "draw every record independently in every step, or charge passes over disjoint batches.",
    ),
    "sampling-fixed-size": (
        "every logical batch has the same number of records, which Poisson draws do not.",
        "draw every record independently; the size is then random and may be 0.",
    ),
    "sampling-left-out": (
        "some records never take part.",
        "draw from the whole data set, or declare the smaller one.",
    ),
    "sampling-blocks": (
        "records enter a draw together (blocks, groups or one coin for several records).",
        "throw one coin for each record.",
    ),
    "sampling-empty-skipped": (
        "empty draws are skipped or replaced.",
        "take and charge a step of noise alone for every empty draw.",
    ),
    "sampling-capped": (
        "the size of a logical batch is capped, and drawn records are dropped.",
        "process large draws in several physical batches.",
    ),
    "sampling-unequal": (
        "records take part with different probabilities (weights, or an uneven split).",
        "draw every record with the same rate.",
    ),
    "sampling-dependent": (
        "a draw depends on the one before.",
        "draw every step independently.",
    ),
    "sampling-rate": (
        "records take part with another rate than is charged.",
        "charge the rate batch_size / N with which records are drawn.",
    ),
    "sampling-not-poisson": (
        "draws are not those of Poisson sampling.",
        "draw every record independently with the charged rate.",
    ),
}


def _cause(code: str) -> Cause:
    return Cause(code, *_WORDS[code])
