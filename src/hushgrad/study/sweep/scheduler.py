"""Runs side by side in processes, within a budget of CPU threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from hushgrad.arguments import whole_number
from hushgrad.printable import printable
from hushgrad.study.interruption import finish_step_on_interrupt
from hushgrad.study.sweep.folder import SweepFolder
from hushgrad.study.sweep.plan import PlannedRun, SweepPlan
from hushgrad.study.sweep.worker import FAILED, INTERRUPTED

POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class CoreBudget:
    """How much of the machine a sweep may use: `cores` // `threads_per_run` runs at a time."""

    cores: int
    threads_per_run: int = 1

    def __post_init__(self) -> None:
        whole_number("threads_per_run", self.threads_per_run, minimum=1)
        whole_number("cores", self.cores, minimum=self.threads_per_run)

    @property
    def side_by_side(self) -> int:
        """How many runs go on at a time."""
        return self.cores // self.threads_per_run


@dataclass(frozen=True, slots=True)
class SweepEnd:
    """How a sweep ended: the names of the runs that failed, and whether it was interrupted."""

    failed: tuple[str, ...]
    interrupted: bool


@dataclass(slots=True)
class _Worker:
    run: PlannedRun
    process: subprocess.Popen[str]


def run_sweep(
    plan: SweepPlan,
    folder: SweepFolder,
    budget: CoreBudget,
    on_change: Callable[[frozenset[str]], None] = lambda running: None,
) -> SweepEnd:
    """Run everything that is not finished yet; call `on_change` with the names of running runs, several times a second.

    Finished runs are left as they are. Private runs of a task that were cut off go on from their checkpoints. All
    others that were cut off, and those that failed, are run again, and their former attempts are kept. On Ctrl-C or
    SIGTERM the running ones finish their step and write their files. A failure is recorded, and the sweep goes on.

    Guarantee: a finished run is never run again, and no attempt's ledger is removed.
    """
    with folder.locked(), finish_step_on_interrupt() as stop_requested:
        waiting = [run for run in plan.runs if not folder.settle(run.name)]
        workers: list[_Worker] = []
        failed: list[str] = []
        told = False
        try:
            while (waiting and not told) or workers:
                while waiting and not told and len(workers) < budget.side_by_side:
                    run = waiting.pop(0)
                    workers.append(_Worker(run, _start(run, folder, budget)))
                on_change(frozenset(worker.run.name for worker in workers))
                time.sleep(POLL_SECONDS)
                if stop_requested() and not told:
                    told = True
                    for worker in workers:
                        worker.process.terminate()
                ended = [worker for worker in workers if worker.process.poll() is not None]
                workers = [worker for worker in workers if worker not in ended]
                failed += [worker.run.name for worker in ended if not _finish(worker, folder)]
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.wait()
        on_change(frozenset())
    return SweepEnd(tuple(failed), told and any(not folder.is_finished(run.name) for run in plan.runs))


def _start(run: PlannedRun, folder: SweepFolder, budget: CoreBudget) -> subprocess.Popen[str]:
    """Start a worker. It is in a session of its own, so that Ctrl-C reaches it only through the sweep."""
    threads = str(budget.threads_per_run)
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    with folder.log(run.name).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "hushgrad.study.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **limits, "PYTHONUNBUFFERED": "1"},
        )
    order = {"job": run.job, "out": str(folder.working(run.name)), "threads": budget.threads_per_run}
    assert process.stdin is not None  # asked for above
    try:
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it ended before it read its job; its exit status says so
    return process


def _finish(worker: _Worker, folder: SweepFolder) -> bool:
    """Put the ended worker's files in their place; return False if it failed."""
    name, status = worker.run.name, worker.process.returncode
    finished = folder.settle(name, failed=status == FAILED)
    if finished or status == INTERRUPTED:
        return True
    folder.record_failure(name, *_why(folder, name, status))
    return False


def _why(folder: SweepFolder, name: str, status: int) -> tuple[str, str]:
    """Return the kind of error and its line, from the last line of the log if the worker wrote one."""
    lines = folder.log(name).read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        last = json.loads(lines[-1])
        return printable(str(last["kind"])), printable(str(last["message"]), limit=400)
    except (IndexError, ValueError, KeyError, TypeError):
        return "Crash", f"the process ended with status {status}; see the run's log"
