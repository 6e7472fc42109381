"""Interleaved timing: contestants step in turn, and what is compared is the ratio inside one round.

The load of a machine drifts over seconds and a round takes milliseconds, so both sides of a ratio see the same machine.
The orders are balanced: every contestant comes equally often at each place and equally often after each other one
(Williams 1949), because a step finds in the cache what the step before left there.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binom

from benchmarks.runner import Runner

FEWEST_ROUNDS = 6  # with fewer, no order statistic encloses the median with 95%


@dataclass(frozen=True)
class Interval:
    """A median with an interval that encloses the true median with at least the stated probability."""

    median: float
    low: float
    high: float
    coverage: float


def median_interval(values: Sequence[float], coverage: float = 0.95) -> Interval:
    """Return the sample median and the narrowest symmetric interval of order statistics around the true one.

    It supposes independent values and nothing about their distribution. Raises ValueError for fewer values than
    the coverage needs.
    """
    ordered = sorted(values)
    count = len(ordered)
    # The k-th smallest value exceeds the true median with probability P(Binomial(n, 1/2) < k).
    rank = int(binom.ppf((1 - coverage) / 2, count, 0.5))
    while rank > 0 and binom.cdf(rank - 1, count, 0.5) > (1 - coverage) / 2:
        rank -= 1
    if rank == 0:
        raise ValueError(f"{count} values are too few for an interval of coverage {coverage}")
    achieved = 1 - 2 * float(binom.cdf(rank - 1, count, 0.5))
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return Interval(middle, ordered[rank - 1], ordered[count - rank], achieved)


def balanced_orders(count: int) -> list[tuple[int, ...]]:
    """Return orders of range(count) in which each item is at each place, and after each other item, equally often."""
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]
    orders = [tuple((item + shift) % count for item in zigzag) for shift in range(count)]
    return orders if count % 2 == 0 else [*orders, *[order[::-1] for order in orders]]


@dataclass(frozen=True)
class Timings:
    """Seconds of each step: for each contestant one number a round."""

    seconds: Mapping[str, tuple[float, ...]]

    def median_ms(self, name: str) -> Interval:
        """Return the median step time of a contestant in milliseconds."""
        return median_interval([1e3 * value for value in self.seconds[name]])

    def ratio(self, name: str, to: str) -> Interval:
        """Return the median of the paired ratios of two contestants' step times."""
        return median_interval([a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True)])

    def beyond_ms(self, name: str, to: str) -> Interval:
        """Return the median of the paired differences of two contestants' step times in milliseconds."""
        return median_interval([1e3 * (a - b) for a, b in zip(self.seconds[name], self.seconds[to], strict=True)])


def interleave(runners: Mapping[str, Runner], *, rounds: int, warm_up: int, until: float | None = None) -> Timings:
    """Step all runners in turn, `warm_up` rounds unrecorded and then `rounds` rounds recorded.

    With `until`, a time of the clock `time.time()`, fewer rounds are recorded where the time is over before, but never
    fewer than the fewest. The clock ends it, and no ratio that was found.

    Python's garbage collector runs between the rounds and never inside a step.
    """
    names = list(runners)
    orders = balanced_orders(len(names))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for number in range(warm_up + rounds):
            if until is not None and number >= warm_up + FEWEST_ROUNDS and time.time() > until:
                break
            for index in orders[number % len(orders)]:
                elapsed = _timed(runners[names[index]])
                if number >= warm_up:
                    seconds[names[index]].append(elapsed)
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return Timings({name: tuple(values) for name, values in seconds.items()})


def _timed(runner: Runner) -> float:
    batch = runner.prepare()
    start = time.perf_counter_ns()
    runner.step(batch)
    return (time.perf_counter_ns() - start) * 1e-9


def paired(first: Callable[[], None], second: Callable[[], None], *, rounds: int, warm_up: int = 3) -> Timings:
    """Time two functions without preparation in turn; the names are "first" and "second"."""
    nothing = (torch.empty(0), torch.empty(0))
    runners = {
        "first": Runner(lambda: nothing, lambda _: first(), ()),
        "second": Runner(lambda: nothing, lambda _: second(), ()),
    }
    return interleave(runners, rounds=rounds, warm_up=warm_up)
