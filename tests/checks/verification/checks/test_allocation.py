"""Passes that are random allocation pass; each way to be none is found. Fixed seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hushgrad.checks.verification.checks.allocation import PASSES, read_passes
from hushgrad.randomness import KeyStream
from hushgrad.sampling import BallsInBinsSampling
from hushgrad.sampling.scheme import Allocation

N, BINS = 300, 10
Passes = list[list[list[int]]]
ALARM = 1e-6


def steps_from(chosen: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(chosen == step).tolist() for step in range(BINS)]


def independent(rng: np.random.Generator) -> Passes:
    return [steps_from(rng.integers(0, BINS, N)) for _ in range(PASSES)]


def shuffled(rng: np.random.Generator) -> Passes:
    """A random order that is cut into batches of one size."""
    return [steps_from(rng.permutation(np.arange(N) % BINS)) for _ in range(PASSES)]


def kept(rng: np.random.Generator) -> Passes:
    passes = independent(rng)
    return [passes[number // 2] for number in range(PASSES)]


def blocks(rng: np.random.Generator) -> Passes:
    return [steps_from(np.repeat(rng.integers(0, BINS, N // 2), 2)) for _ in range(PASSES)]


def preferred(rng: np.random.Generator) -> Passes:
    return [steps_from(np.maximum(rng.integers(-1, BINS, N), 0)) for _ in range(PASSES)]


def left_out(rng: np.random.Generator) -> Passes:
    passes = independent(rng)
    passes[7] = [[record for record in step if record != 5] for step in passes[7]]
    return passes


@pytest.mark.parametrize(
    ("planted", "code", "cause"),
    [
        (shuffled, "sampling-sizes", "sampling-not-random"),
        (kept, "sampling-overlaps", "sampling-kept"),
        (blocks, "sampling-neighbours", "sampling-blocks"),
        (preferred, "sampling-sizes", "sampling-not-random"),
        (left_out, "sampling-each-once", "sampling-allocation"),
    ],
)
def test_what_is_no_random_allocation_is_found(
    planted: Callable[[np.random.Generator], Passes], code: str, cause: str
) -> None:
    passes = planted(np.random.default_rng(1))
    reading = read_passes(passes, population=N, allocation=Allocation(BINS, 1), false_alarm=ALARM)
    assert not reading.checks[code].passed
    assert cause in {found.code for found in reading.causes}


@pytest.mark.parametrize(("bins", "times", "population"), [(10, 1, 300), (12, 3, 200), (40, 1, 15), (6, 6, 20)])
def test_the_librarys_own_passes_pass(bins: int, times: int, population: int) -> None:
    """False alarm 1e-6 each, a fixed key."""
    sampler = BallsInBinsSampling(bins, times).sampler(population, KeyStream.fixed_for_tests(6))
    passes = [list(sampler.one_pass(bins, number * bins)) for number in range(PASSES)]
    reading = read_passes(passes, population=population, allocation=Allocation(bins, times), false_alarm=ALARM)
    assert not reading.causes
    assert all(check.passed for check in reading.checks.values())
    assert reading.rate == pytest.approx(times / bins)
    assert len(reading.checks) == (2 if times == bins else 5)


def test_false_alarms_are_as_rare_as_said() -> None:
    """At a false alarm of 5%, 400 runs of true allocation alarm at most 45 times (5% of 400 is 20; P < 1e-6)."""
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(400):
        passes = [steps_from(rng.integers(0, BINS, 40)) for _ in range(6)]
        reading = read_passes(passes, population=40, allocation=Allocation(BINS, 1), false_alarm=0.05)
        alarms += bool(reading.causes)
    assert alarms <= 45
