"""What the guards that stay on while training cost, as a share of a private step.

A guard is a method that a step calls to find out whether anything is out of order. Each is wrapped by a clock while a
workload trains, after the first step (in which the model is examined); its time is given as a share of the step's.
Calls within calls are counted once. Also measured: attaching, and the first step, in ordinary steps and in forwards.

    python -m benchmarks.guards [WORKLOAD ...] [--threads 2] [--processor-time]

On a machine that does other work as well, only `--threads 1 --processor-time` says anything.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.contestants import hushgrad_session, ordinary
from benchmarks.runner import Runner
from benchmarks.workloads import WORKLOADS, Workload
from hushgrad.capture.scope import Scope
from hushgrad.guards.left_alone import LeftAlone
from hushgrad.guards.probing.probe import Probe
from hushgrad.guards.setup_invariants import SetupInvariants
from hushgrad.session.order import DeclaredOrder, ObservedOrder
from hushgrad.session.session import Session

GUARDS: tuple[tuple[type[Any], str], ...] = (
    *((SetupInvariants, name) for name in vars(SetupInvariants) if name.startswith(("require_", "expect_"))),
    *((Probe, name) for name in ("entering", "left", "losses", "evaluated", "examine", "forget")),
    *((loop, name) for loop in (DeclaredOrder, ObservedOrder) for name in vars(loop) if not name.startswith("_")),
    (LeftAlone, "step_begins"),
    (LeftAlone, "updated"),
    (Scope, "leave_if_stale"),
)
"""Looked up on their classes: a guard that is renamed is an error here and not a silent 0."""

STEPS = 20


Now = Callable[[], float]


class Clock:
    """Adds up the time within the wrapped functions, that of the outermost one only.

    Args:
        now: what time it is, in seconds.

    Attributes:
        seconds: the sum.
        owner: whose method was called last.
    """

    def __init__(self, now: Now = time.perf_counter) -> None:
        self.seconds = 0.0
        self.owner: Any = None
        self._now = now
        self._depth = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with the clock around it."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            self.owner = args[0] if args else None
            start = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += self._now() - start

        return timed


@contextmanager
def watched(clock: Clock, methods: Iterable[tuple[type[Any], str]]) -> Iterator[None]:
    """Put the clock around some methods."""
    with ExitStack() as stack:
        for owner, name in methods:
            kept = vars(owner)[name]
            if isinstance(kept, property):
                continue
            setattr(owner, name, clock.around(kept))
            stack.callback(setattr, owner, name, kept)
        yield


@dataclass(frozen=True)
class Overhead:
    """Shares and multiples.

    Attributes:
        guards: time within guards over the time of a private step; the median over steps.
        attach: `privatize`, in ordinary steps.
        first_step: the first private step, in ordinary steps.
        later_step: a later one.
        forwards: what the probe ran in the first step, in forwards of the batch.
    """

    guards: float
    attach: float
    first_step: float
    later_step: float
    forwards: float


def overhead_of(workload: Workload, steps: int = STEPS, now: Now = time.perf_counter) -> Overhead:
    """Measure one workload in this process."""
    hushgrad_session(replace(workload, batch_size=2), 1.0).step(workload_of(workload, 2))  # loads code and libraries
    plain = ordinary(workload, 1.0)
    batch = plain.prepare()
    plain.step(batch)
    ordinary_step = statistics.median(_seconds(plain, batch, now) for _ in range(steps))
    clock = Clock(now)
    with watched(clock, [(Session, "__init__")]):
        private = hushgrad_session(workload, 1.0)
    attach = clock.seconds
    session, first_step = clock.owner, _seconds(private, batch, now)
    clock, shares, later = Clock(now), [], []
    with watched(clock, GUARDS):
        for _ in range(steps):
            clock.seconds = 0.0
            later.append(_seconds(private, batch, now))
            shares.append(clock.seconds / later[-1])
    return Overhead(
        statistics.median(shares),
        attach / ordinary_step,
        first_step / ordinary_step,
        statistics.median(later) / ordinary_step,
        session.probe_report.forwards,
    )


def workload_of(workload: Workload, size: int) -> Any:
    """Return a small batch of a workload."""
    return replace(workload, batch_size=size).batch()


def _seconds(runner: Runner, batch: Any, now: Now) -> float:
    start = now()
    runner.step(batch)
    return now() - start


def main() -> None:
    """Print a line for each workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", nargs="*", choices=[[], *WORKLOADS], help="all of them if none is named")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--processor-time", action="store_true", help="of this process, in place of the time of day")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    now = time.process_time if options.processor_time else time.perf_counter
    print("workload       guards / step   attach   first step   later step   (in ordinary steps)   probe, forwards")
    for name in options.workload or WORKLOADS:
        found = overhead_of(WORKLOADS[name], options.steps, now)
        print(
            f"{name:14} {found.guards:13.2%} {found.attach:8.2f} {found.first_step:12.2f} {found.later_step:12.2f}"
            f"{found.forwards:42.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
