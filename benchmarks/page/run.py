"""The run: a process for each workload and allocator, one after the other, and one for the growth."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.allocators import ALLOCATORS, environment_of
from benchmarks.page.budget import GROWTH_SHARE, LONGEST_PART, in_order
from benchmarks.page.others import Watch
from benchmarks.page.results import GrowthFound, WorkloadFound
from benchmarks.page.worker import Part, part_of
from benchmarks.workloads import SMALL, WORKLOADS

ROOT = Path(__file__).resolve().parents[2]
LINES_OF_AN_ERROR = 3


class WorkerError(RuntimeError):
    """A worker ended without a result."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        ends: when to be ready, as `time.time()` counts.
        contestants: who takes part, by name; all can run here.
        axes: of the growth; none for no growth.
        one_allocator: why the allocator's settings do nothing, so that only the default is measured; None for both.
        small: whether to take the sizes of tests.
    """

    ends: float
    workloads: list[str]
    contestants: list[str]
    axes: list[str]
    threads: int
    one_allocator: str | None
    small: bool

    @property
    def allocators(self) -> tuple[str, ...]:
        """The allocators to measure under, in order."""
        return ALLOCATORS if self.one_allocator is None else ALLOCATORS[:1]


def run(plan: Plan, console: Console) -> tuple[dict[str, WorkloadFound], GrowthFound | None]:
    """Measure all workloads, the light ones first, and then the growth."""
    reserved = GROWTH_SHARE * (plan.ends - time.time()) if plan.axes else 0.0
    found = {}
    waiting = in_order(plan.workloads)
    while waiting:
        share = (plan.ends - reserved - time.time()) / len(waiting)
        name = waiting.pop(0)
        console.print(f"{name}: about {max(share, 0):.0f} s", style="dim")
        found[name] = _workload(plan, name, share)
    growth = None
    if plan.axes:
        console.print("growth", style="dim")
        growth = _growth(plan)
    return {name: found[name] for name in plan.workloads}, growth


def _workload(plan: Plan, name: str, share: float) -> WorkloadFound:
    began, watch = time.time(), Watch()
    parts: dict[str, Part] = {}
    absent, error = None, None
    for allocator in plan.allocators:
        is_last = allocator == plan.allocators[-1]
        until = began + share * (1.0 if is_last else LONGEST_PART)
        order = {"job": "workload", "workload": name, "contestants": plan.contestants, "until": until, "absent": absent}
        try:
            parts[allocator] = part_of(_worker(plan, order, allocator))
        except WorkerError as ended:
            error = str(ended)
            break
        absent = parts[allocator].absent
    workload = (SMALL if plan.small else WORKLOADS)[name]
    return WorkloadFound(workload.title, workload.batch_size, parts, watch.share(), error)


def _growth(plan: Plan) -> GrowthFound:
    watch = Watch()
    try:
        found = _worker(plan, {"job": "growth", "axes": plan.axes, "until": plan.ends}, "default")
    except WorkerError as ended:
        return GrowthFound({}, [], {}, watch.share(), str(ended))
    return GrowthFound(found["drawings"], found["rows"], found["figures"], watch.share())


def _worker(plan: Plan, order: Mapping[str, Any], allocator: str) -> dict[str, Any]:
    """Return what a process of its own found. Raises WorkerError if it ended otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        whole = {**order, "threads": plan.threads, "small": plan.small, "found": str(path)}
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.page.worker", json.dumps(whole)],
            env=environment_of(allocator),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if child.returncode:
            raise WorkerError(_reason(child.returncode, child.stderr))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def _reason(status: int, errors: str) -> str:
    if status < 0:
        return f"its process was ended by signal {-status}" + (": often too little memory" if status == -9 else "")
    last = [line for line in errors.splitlines() if line.strip()][-LINES_OF_AN_ERROR:]
    return " ".join(last) or f"its process ended with status {status}"
