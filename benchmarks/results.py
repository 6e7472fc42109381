"""What a run of the benchmarks found, as one value that is written to JSON and turned into tables."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from benchmarks.contestants import HUSHGRAD, ORDINARY
from benchmarks.machine import Machine
from benchmarks.memory import Peak
from benchmarks.noise import NoiseTimes
from benchmarks.profile import Profile
from benchmarks.timing import Interval, Timings

SCHEMA = 2


@dataclass(frozen=True)
class ContestantResult:
    """One contestant on one workload; ratios and differences to others are medians over pairs of steps."""

    step_ms: Interval
    to_ordinary: Interval
    to_hushgrad: Interval
    beyond_ordinary_ms: Interval
    peak: Peak | None


@dataclass(frozen=True)
class WorkloadResult:
    """All contestants on one workload.

    Attributes:
        absent: who could not take part, and why.
    """

    title: str
    batch_size: int
    parameters: int
    contestants: dict[str, ContestantResult]
    profile: Profile | None = None
    absent: dict[str, str] = field(default_factory=dict)
    target_time: float | None = None
    target_memory: float | None = None


@dataclass(frozen=True)
class Results:
    """One run."""

    command: str
    machine: Machine
    pairs: int
    warm_up: int
    allocator: str
    workloads: dict[str, WorkloadResult]
    noise: NoiseTimes | None = None
    schema: int = field(default=SCHEMA)

    def to_json(self) -> str:
        """Return the results as JSON."""
        fields: dict[str, Any] = dataclasses.asdict(self)
        return json.dumps(fields, indent=2) + "\n"


def contestant_results(timings: Timings, peaks: dict[str, Peak | None]) -> dict[str, ContestantResult]:
    """Return the figures of all contestants from their interleaved timings and their peaks of memory."""
    return {
        name: ContestantResult(
            timings.median_ms(name),
            timings.ratio(name, ORDINARY),
            timings.ratio(name, HUSHGRAD),
            timings.beyond_ms(name, ORDINARY),
            peaks[name],
        )
        for name in timings.seconds
    }
