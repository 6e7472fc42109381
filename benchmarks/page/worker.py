"""What one process measures: a workload under the allocator that the process began with, or the growth of step time.

Called by `python -m benchmarks.page` with an order as JSON in its argument; writes what it found as JSON to the file
that the order names, because peers print.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import CONTESTANTS, HUSHGRAD, ORDINARY, versions_of
from benchmarks.eligibility import MUST_TAKE_PART, other_update, reason_of, update
from benchmarks.growth import AXES, Axis, GrowthResults, draw, grow, growth_table
from benchmarks.machine import Machine, this_machine
from benchmarks.page.budget import rounds_within
from benchmarks.peers import quiet_remarks
from benchmarks.runner import Runner
from benchmarks.timing import FEWEST_ROUNDS, Interval, interleave
from benchmarks.workloads import SMALL, WORKLOADS, Workload

MOST_PAIRS = 30
FEWEST_PAIRS = FEWEST_ROUNDS
FEWEST_SECONDS = 5.0  # for rounds, however late it is: nobody is left out of a light workload


@dataclass(frozen=True)
class Figure:
    """A contestant's step and its paired ratio to the ordinary step."""

    step_ms: Interval
    to_ordinary: Interval


@dataclass(frozen=True)
class Part:
    """A workload under one allocator.

    Attributes:
        absent: who took no part, and why.
    """

    rounds: int
    figures: dict[str, Figure]
    absent: dict[str, str]


def part_of(fields: dict[str, Any]) -> Part:
    """Return the part that a worker wrote."""
    figures = {
        name: Figure(Interval(**figure["step_ms"]), Interval(**figure["to_ordinary"]))
        for name, figure in fields["figures"].items()
    }
    return Part(fields["rounds"], figures, fields["absent"])


def measure(workload: Workload, names: list[str], until: float, known_absent: dict[str, str] | None) -> Part:
    """Time some contestants in turn until a time of the clock, `time.time()`.

    Args:
        workload: what is trained.
        names: who shall take part; the ordinary step and hushgrad do in any case.
        until: when to be ready. Fewer rounds than the fewest are not measured, so that it can take longer.
        known_absent: who was found not to take part by a process before this one, and why; None asks here.
    """
    absent = dict(known_absent or {})
    expected = update(workload, HUSHGRAD) if known_absent is None else None
    runners, seconds = {}, {}
    for name in [name for name in names if name not in absent]:
        try:
            if expected is not None and (why := other_update(workload, name, expected)) is not None:
                absent[name] = why
                continue
            runner = CONTESTANTS[name].build(workload, 1.0)
            seconds[name] = _second_step(runner)
            runners[name] = runner
        except Exception as error:
            if name in MUST_TAKE_PART:
                raise
            absent[name] = reason_of(error)  # whatever a peer raises is its answer
    # The second process keeps whom the first one had time for, so that both allocators show the same contestants.
    fitting = rounds_within(
        max(until - time.time(), FEWEST_SECONDS), seconds, MUST_TAKE_PART if known_absent is None else names
    )
    for name, took in fitting.left_out.items():
        absent[name] = (
            f"a step takes {took:.2g} s, and there is no time for {FEWEST_ROUNDS} of them: --minutes gives more"
        )
        del runners[name]
    # Each has taken two steps: there is nothing to warm up.
    timings = interleave(runners, rounds=fitting.count, warm_up=0, until=until)
    figures = {name: Figure(timings.median_ms(name), timings.ratio(name, ORDINARY)) for name in timings.seconds}
    return Part(len(timings.seconds[ORDINARY]), figures, absent)


def _second_step(runner: Runner) -> float:
    """Return how long a step takes that is not the first, in which a private contestant may examine the model."""
    runner.step(runner.prepare())
    batch = runner.prepare()
    began = time.perf_counter()
    runner.step(batch)
    return time.perf_counter() - began


def pairs_within(axis: Axis, seconds: float) -> int:
    """Return how many pairs of steps at each size of an axis fit, supposing that each size takes half of the next."""
    runners = [CONTESTANTS[name].build(axis.workload(axis.sizes[-1]), 1.0) for name in (ORDINARY, HUSHGRAD)]
    largest = sum(_second_step(runner) for runner in runners)
    return max(FEWEST_PAIRS, min(MOST_PAIRS, int(seconds / (2 * largest))))


def measure_growth(axes: Mapping[str, Axis], until: float, machine: Machine) -> dict[str, Any]:
    """Time the growth along some axes; return a drawing for each as SVG, the table and the figures."""
    drawings, figures = {}, {}
    rows: list[list[str]] = []
    for number, (name, axis) in enumerate(axes.items()):
        pairs = pairs_within(axis, (until - time.time()) / (len(axes) - number))
        results = GrowthResults("", machine, pairs, 2, {name: grow(axis, pairs=pairs, warm_up=2)})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "growth.svg"
            draw(results, path)
            drawings[axis.title] = path.read_text(encoding="utf-8")
        rows += growth_table(results) if not rows else growth_table(results)[1:]
        figures[name] = {"pairs": pairs, **asdict(results.axes[name])}
    return {"drawings": drawings, "rows": rows, "figures": figures}


def main(order: dict[str, Any]) -> None:
    """Carry out an order and write what was found."""
    torch.set_num_threads(order["threads"])
    quiet_remarks()
    found: dict[str, Any]
    if order["job"] == "growth":
        axes = {name: AXES[name] for name in order["axes"]}
        if order["small"]:
            axes = {name: replace(axis, sizes=axis.sizes[:3]) for name, axis in axes.items()}
        found = measure_growth(axes, order["until"], this_machine(versions_of([ORDINARY])))
    else:
        workload = (SMALL if order["small"] else WORKLOADS)[order["workload"]]
        found = asdict(measure(workload, order["contestants"], order["until"], order["absent"]))
    Path(order["found"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
