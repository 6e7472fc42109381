"""Where a hushgrad step spends its time: by phase and by torch operator, beside the ordinary step.

The two places in which a step leaves the user's own calls, the clipped sums and the noise, are timed by wrapping those
functions under every name by which a module of hushgrad calls them. All else is timed around the calls of the loop.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity

import hushgrad
from benchmarks.contestants import CONTESTANTS, HUSHGRAD, ORDINARY
from benchmarks.runner import MAX_GRAD_NORM, Runner, runner_of, sgd
from benchmarks.timing import interleave
from benchmarks.workloads import Batch, Workload
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.noise.gaussian import noisy_updates

PHASES = ("forward and loss", "backward", "norms and clipped sums", "noise and division", "optimizer and charge")
FORWARD, BACKWARD, SUMS, NOISE, OPTIMIZER = PHASES
OPERATORS_SHOWN = 14

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Profile:
    """Figures of a step, as {"ordinary": ..., "hushgrad": ...} for each row.

    Attributes:
        phases_ms: milliseconds of each phase.
        operators_ms: milliseconds of the largest operators, each without the operators that it calls.
        resources: processor time in milliseconds, all threads together, and pages of memory mapped in. Memory that
            is given back to the system after each step is mapped in again, page by page, in the next one.
    """

    phases_ms: dict[str, dict[str, float]]
    operators_ms: dict[str, dict[str, float]]
    resources: dict[str, dict[str, float]]


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

    with ExitStack() as patches:
        for phase, function in ((SUMS, clipped_sums), (NOISE, noisy_updates)):
            for place in callers_of(function):
                patches.enter_context(patch(place, watch.wrapped(phase, function)))
        interleave({name: noted(name, runner) for name, runner in runners.items()}, rounds=rounds, warm_up=warm_up)
    phases = {
        phase: {name: 1e3 * median(step.get(phase, 0.0) for step in steps[warm_up:]) for name, steps in taken.items()}
        for phase in PHASES
    }
    return Profile(phases, _operators(workload, steps=min(rounds, 20)), _resources(workload, rounds, warm_up))


def callers_of(function: Callable[..., Any]) -> list[str]:
    """Return "module.name" for each module of hushgrad, other than its own, that imported the function by name.

    Raises LookupError if there is none: its time would be silently counted for another phase.
    """
    name = function.__name__
    places = [
        f"{module_name}.{name}"
        for module_name, module in sys.modules.items()
        if module_name.startswith("hushgrad.")
        and module_name != function.__module__
        and vars(module).get(name) is function
    ]
    if not places:
        raise LookupError(f"no module of hushgrad imports {function.__module__}.{name} by name")
    return places


def _ordinary(workload: Workload, watch: Stopwatch) -> Runner:
    model = workload.model()
    optimizer = sgd(model)
    criterion = workload.criterion()

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        with watch.span(FORWARD):
            loss = criterion(model(batch[0]), batch[1])
        with watch.span(BACKWARD):
            loss.backward()
        with watch.span(OPTIMIZER):
            optimizer.step()

    return runner_of(workload, model, step)


def _private(workload: Workload, watch: Stopwatch) -> Runner:
    model = workload.model()
    optimizer = sgd(model)
    criterion = workload.criterion(reduction="none")
    mechanism = hushgrad.DPSGD(
        noise_multiplier=1.0,
        clipping=hushgrad.FlatClipping(MAX_GRAD_NORM),
        sampling=hushgrad.PoissonSampling(rate=0.01),
        expected_batch_size=workload.batch_size,
    )
    session = hushgrad.privatize(model, optimizer, mechanism)
    session._parts.probe.stop_looks()

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        with watch.span(FORWARD):
            losses = criterion(model(batch[0]), batch[1])
        with watch.span(BACKWARD):
            session.backward(losses)
        with watch.span(OPTIMIZER):
            optimizer.step()

    return runner_of(workload, model, step)


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


def _resources(workload: Workload, rounds: int, warm_up: int) -> dict[str, dict[str, float]]:
    """Processor time and page faults of whole steps, in medians, without any wrapping."""
    used: dict[str, list[tuple[float, int]]] = {ORDINARY: [], HUSHGRAD: []}

    def noted(name: str, runner: Runner) -> Runner:
        def step(batch: Batch) -> None:
            faults, processor = _page_faults(), time.process_time()
            runner.step(batch)
            used[name].append((1e3 * (time.process_time() - processor), _page_faults() - faults))

        return Runner(runner.prepare, step, runner.parameters)

    runners = {name: noted(name, CONTESTANTS[name].build(workload, 1.0)) for name in used}
    interleave(runners, rounds=rounds, warm_up=warm_up)
    return {
        "processor time, ms": {name: median(cpu for cpu, _ in steps[warm_up:]) for name, steps in used.items()},
        "page faults": {name: median(faults for _, faults in steps[warm_up:]) for name, steps in used.items()},
    }


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
