"""Where a hushgrad step spends its time: by phase and by torch operator, beside the ordinary step.

The two places in which a step leaves the user's own calls, the clipped sums and the noise, are found by wrapping the
names under which `hushgrad.session` calls them. Everything else is timed around the calls of the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

import torch
from torch import nn
from torch.profiler import ProfilerActivity

import hushgrad
from benchmarks.contestants import CONTESTANTS, HUSHGRAD, LEARNING_RATE, MAX_GRAD_NORM, ORDINARY, Runner
from benchmarks.timing import interleave
from benchmarks.workloads import Batch, Workload
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.noise.gaussian import noisy_update

PHASES = ("forward and loss", "backward", "norms and clipped sums", "noise and division", "optimizer and charge")
FORWARD, BACKWARD, SUMS, NOISE, OPTIMIZER = PHASES
OPERATORS_SHOWN = 14

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Profile:
    """Milliseconds of a step, as {"ordinary": ..., "hushgrad": ...} for each phase and operator.

    Operators' times are their own, without the operators that they call.
    """

    phases_ms: dict[str, dict[str, float]]
    operators_ms: dict[str, dict[str, float]]


class Stopwatch:
    """Adds up the time inside named spans. Time in a span inside another one counts for the inner one only."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0
        self.seconds: dict[str, float] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Count the time of the block for `name`."""
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    def wrapped(self, name: str, function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        """Return the function with each call in a span."""

        def timed(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            with self.span(name):
                return function(*args, **kwargs)

        return timed

    def take(self) -> dict[str, float]:
        """Return the seconds of each span and start again at zero."""
        seconds, self.seconds = self.seconds, {}
        return seconds


def profile(workload: Workload, *, rounds: int, warm_up: int) -> Profile:
    """Return where the time of a step goes, in medians over interleaved steps."""
    watch = Stopwatch()
    taken: dict[str, list[dict[str, float]]] = {ORDINARY: [], HUSHGRAD: []}
    runners = {ORDINARY: _ordinary(workload, watch), HUSHGRAD: _private(workload, watch)}

    def noted(name: str, runner: Runner) -> Runner:
        def step(batch: Batch) -> None:
            runner.step(batch)
            taken[name].append(watch.take())

        return Runner(runner.prepare, step, runner.parameters)

    with (
        patch("hushgrad.session.clipped_sums", watch.wrapped(SUMS, clipped_sums)),
        patch("hushgrad.session.noisy_update", watch.wrapped(NOISE, noisy_update)),
    ):
        interleave({name: noted(name, runner) for name, runner in runners.items()}, rounds=rounds, warm_up=warm_up)
    phases = {
        phase: {name: 1e3 * median(step.get(phase, 0.0) for step in steps[warm_up:]) for name, steps in taken.items()}
        for phase in PHASES
    }
    return Profile(phases, _operators(workload, steps=min(rounds, 20)))


def _ordinary(workload: Workload, watch: Stopwatch) -> Runner:
    model = workload.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    criterion = workload.criterion()

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        with watch.span(FORWARD):
            loss = criterion(model(batch[0]), batch[1])
        with watch.span(BACKWARD):
            loss.backward()
        with watch.span(OPTIMIZER):
            optimizer.step()

    return _of(workload, model, step)


def _private(workload: Workload, watch: Stopwatch) -> Runner:
    model = workload.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    criterion = workload.criterion(reduction="none")
    mechanism = hushgrad.DPSGD(
        noise_multiplier=1.0,
        clipping=hushgrad.FlatClipping(MAX_GRAD_NORM),
        sampling=hushgrad.PoissonSampling(rate=0.01),
        expected_batch_size=workload.batch_size,
    )
    session = hushgrad.privatize(model, optimizer, mechanism)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        with watch.span(FORWARD):
            losses = criterion(model(batch[0]), batch[1])
        with watch.span(BACKWARD):
            session.backward(losses)
        with watch.span(OPTIMIZER):
            optimizer.step()

    return _of(workload, model, step)


def _of(workload: Workload, model: nn.Module, step: Callable[[Batch], None]) -> Runner:
    batch = workload.batch()
    return Runner(lambda: batch, step, tuple(model.parameters()))


def _operators(workload: Workload, steps: int) -> dict[str, dict[str, float]]:
    """The operators in which hushgrad's step spends most, by torch's own profiler."""
    found: dict[str, dict[str, float]] = {}
    for name in (ORDINARY, HUSHGRAD):
        runner = CONTESTANTS[name].build(workload, 1.0)
        for _ in range(3):
            runner.step(runner.prepare())
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(steps):
                runner.step(runner.prepare())
        events: Any = profiler.key_averages()
        for event in events:
            row = found.setdefault(event.key, {ORDINARY: 0.0, HUSHGRAD: 0.0})
            row[name] = event.self_cpu_time_total / steps / 1e3
    largest = sorted(found, key=lambda key: found[key][HUSHGRAD], reverse=True)[:OPERATORS_SHOWN]
    return {key: found[key] for key in largest}
