"""Reads the draws of the loader that training would use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np

from hushgrad.checks.verification.checks.allocation import PASSES, read_passes
from hushgrad.checks.verification.checks.draws import DRAWS, read_draws
from hushgrad.checks.verification.checks.sampling import SamplingReading, draws_needed, read_sampling
from hushgrad.checks.verification.training.copies import (
    Indices,
    TrainingReplica,
)
from hushgrad.checks.verification.verdict import Check
from hushgrad.randomness import KeyStream
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.ownership import UserIds
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.sampling.scheme import SamplingScheme

_MOST_INDICES = 4_000_000
_PASSES = 4


def draws_of_training(
    replica: TrainingReplica, resolution: float, alpha: float
) -> tuple[SamplingReading | None, tuple[Check, ...]]:
    """Read draws of the loader that training would use, over indices in place of records."""
    count, scheme = replica.reading.count, replica.mechanism.sampling
    if scheme.ownership is not None:
        return _draws_of_users(replica, scheme.ownership.ids, resolution, alpha)
    if scheme.allocation is not None:
        bins, times = scheme.allocation
        passes = max(4, min(PASSES, _MOST_INDICES // (count * times) // 2 * 2))
        drawn = _observed(replica, scheme, bins, passes).draws
        found = read_passes(drawn, population=count, allocation=scheme.allocation, false_alarm=alpha)
        return found, tuple(found.checks.values())
    if scheme.takes_batches or scheme.counts_in == "passes":
        observer = _observed(replica, scheme, replica.reading.steps, passes=3)
        return None, (_each_once(observer.passes, count), *_apart(observer, scheme))
    rate = scheme.poisson_rate
    inclusion = scheme.inclusion_probability(count)
    needed = DRAWS if rate is None else draws_needed(count, rate, resolution, alpha)
    steps = max(40, min(needed, math.ceil(_MOST_INDICES / max(1.0, count * inclusion))))
    observer = _observed(replica, scheme, 2 * math.ceil(steps / (2 * _PASSES)), _PASSES)
    draws = _in_pairs(observer)
    if rate is not None:
        most = scheme.largest_batch
        reading = read_sampling(draws, population=count, rate=rate, false_alarm=alpha, max_batch_size=most)
    else:
        reading = read_draws(
            draws,
            population=count,
            inclusion=inclusion,
            expected_size=scheme.expected_batch_size(count),
            largest_batch=scheme.largest_batch,
            draws_afresh=scheme.draws_afresh,
            false_alarm=alpha,
        )
    return reading, (*reading.checks.values(), *_apart(observer, scheme))


def _draws_of_users(
    replica: TrainingReplica, ids: UserIds, resolution: float, alpha: float
) -> tuple[SamplingReading, tuple[Check, ...]]:
    """Read the draws as those of users, and look whether each held all records of them, or none."""
    scheme = replica.mechanism.sampling
    rate = scheme.inclusion_probability(ids.records)
    needed = draws_needed(ids.users, rate, resolution, alpha)
    steps = max(40, min(needed, math.ceil(_MOST_INDICES / max(1.0, ids.records * rate))))
    observer = _observed(replica, scheme, 2 * math.ceil(steps / (2 * _PASSES)), _PASSES)
    draws = [tuple(sorted(set(ids.codes[list(draw)].tolist()))) for draw in _in_pairs(observer)]
    reading = read_sampling(draws, population=ids.users, rate=rate, false_alarm=alpha)
    return reading, (*reading.checks.values(), _whole(observer, ids))


def _whole(observer: _Draws, ids: UserIds) -> Check:
    parted = sum(
        not ids.holds_whole_users(np.array(batch.indices, np.int64))
        or batch.owners != tuple(ids.codes[list(batch.indices)].tolist())
        for batch in observer.batches
    )
    return Check(
        code="sampling-whole-users",
        part="sampling",
        claim="a draw holds all records of a user or none of them",
        measured=f"{parted} of {len(observer.batches)} draws hold a part of a user's",
        passed=parted == 0,
        sample_size=len(observer.batches),
        power="every case",
    )


def _in_pairs(observer: _Draws) -> list[tuple[int, ...]]:
    """Return the draws of some passes in an order in which neighbours would show what depends on what.

    The first passes as they came: a step beside the next one. The last two interleaved: a step beside that of the same
    place in the next pass, which a sampler that begins anew in every pass draws again.
    """
    *before, one, other = observer.draws
    return [*chain.from_iterable(before), *chain.from_iterable(zip(one, other, strict=False))]


def not_tested(scheme: SamplingScheme) -> tuple[str, ...]:
    """Return what the draws of a scheme could not show."""
    if scheme.takes_batches or scheme.draws_afresh:
        return ()
    return (
        "Steps are not drawn afresh, so how often records take part could not be tested: only each draw by itself.",
    )


def _observed(replica: TrainingReplica, scheme: SamplingScheme, steps: int, passes: int = 1) -> _Draws:
    """Draw as training would, over indices in place of records."""
    observer = _Draws()
    loader = PrivateLoader(
        Indices(replica.reading.count),
        scheme,
        steps_per_pass=steps,
        stream=KeyStream.from_operating_system(),
        batch_size=replica.mechanism.expected_batch_size,
        batches=replica.reading.batches if scheme.takes_batches else None,
        observer=observer,
    )
    for _ in range(passes):
        for _item in loader:
            pass
    return observer


class _Draws:
    """Notes what a loader hands out."""

    def __init__(self) -> None:
        self.batches: list[PhysicalBatch] = []

    @property
    def draws(self) -> list[list[tuple[int, ...]]]:
        """The draws of each pass."""
        found: dict[int, list[tuple[int, ...]]] = {}
        for batch in self.batches:
            found.setdefault(batch.pass_index, []).append(batch.indices)
        return list(found.values())

    @property
    def passes(self) -> list[list[int]]:
        """The records of each pass."""
        return [list(chain.from_iterable(draws)) for draws in self.draws]

    def before_draw(self) -> None:
        """Nothing is required."""

    def begin(self, batch: PhysicalBatch, item: object) -> None:
        """Note an item."""
        self.batches.append(batch)

    def lost(self, batch: PhysicalBatch) -> None:
        """Nothing is noted: its records were not handed out."""


def _each_once(passes: Sequence[Sequence[int]], count: int) -> Check:
    twice = sum(len(set(records)) < len(records) for records in passes)
    return Check(
        code="sampling-each-once",
        part="sampling",
        claim="every record takes part at most once in a pass over the data",
        measured=f"{twice} of {len(passes)} passes hold a record twice",
        passed=twice == 0,
        sample_size=sum(map(len, passes)),
        power="every case",
    )


def _apart(observer: _Draws, scheme: SamplingScheme) -> tuple[Check, ...]:
    """Look whether records come back no sooner than the scheme says, where it says anything."""
    if scheme.min_separation == 1:
        return ()
    least, last = math.inf, dict[int, int]()
    for batch in observer.batches:
        for index in batch.indices:
            least = min(least, batch.step - last.get(index, -(10**12)))
            last[index] = batch.step
    found = "none came back" if least > 10**11 else f"{least} steps at least"
    return (
        Check(
            code="sampling-separation",
            part="sampling",
            claim=f"a record takes part again after {scheme.min_separation} steps at the earliest",
            measured=found,
            passed=least >= scheme.min_separation,
            sample_size=sum(len(batch.indices) for batch in observer.batches),
            power="every case",
        ),
    )
