"""Reads the draws of the loader that training would use."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hushgrad.checks.verification.checks.sampling import SamplingReading, draws_needed, read_sampling
from hushgrad.checks.verification.training.copies import (
    Indices,
    TrainingReplica,
)
from hushgrad.checks.verification.verdict import Check
from hushgrad.randomness import KeyStream
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.sampling.specs import RandomSampling, TruncatedPoissonSampling

_MOST_INDICES = 4_000_000


def read_draws(
    replica: TrainingReplica, resolution: float, alpha: float
) -> tuple[SamplingReading | None, tuple[Check, ...]]:
    """Read draws of the loader that training would use, over indices in place of records."""
    stream = KeyStream.from_operating_system()
    count, sampling = replica.reading.count, replica.mechanism.sampling
    observer = _Draws()
    if not isinstance(sampling, RandomSampling):
        loader = PrivateLoader(
            Indices(count),
            sampling,
            steps_per_pass=replica.reading.steps,
            stream=stream,
            batch_size=replica.reading.batch_size,
            batches=replica.reading.batches,
            observer=observer,
        )
        for _ in range(3):
            for _item in loader:
                pass
        return None, (_each_once(observer.passes, count),)
    draws = draws_needed(count, sampling.rate, resolution, alpha)
    draws = max(40, min(draws, math.ceil(_MOST_INDICES / max(1.0, count * sampling.rate))))
    loader = PrivateLoader(Indices(count), sampling, steps_per_pass=draws, stream=stream, observer=observer)
    for _item in loader:
        pass
    reading = read_sampling(
        [batch.indices for batch in observer.batches],
        population=count,
        rate=sampling.rate,
        false_alarm=alpha,
        max_batch_size=sampling.max_batch_size if isinstance(sampling, TruncatedPoissonSampling) else None,
    )
    return reading, tuple(reading.checks.values())


class _Draws:
    """Notes what a loader hands out."""

    def __init__(self) -> None:
        self.batches: list[PhysicalBatch] = []

    @property
    def passes(self) -> list[list[int]]:
        """The records of each pass."""
        found: dict[int, list[int]] = {}
        for batch in self.batches:
            found.setdefault(batch.pass_index, []).extend(batch.indices)
        return list(found.values())

    def before_draw(self) -> None:
        """Nothing is required."""

    def begin(self, batch: PhysicalBatch) -> None:
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
