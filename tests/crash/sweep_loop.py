"""Kills `hushgrad sweep`, a worker of it or both with SIGKILL at a named point of its second run, and resumes it.

Run as a program: `sweep_loop.py FOLDER POINT STEP VICTIMS`; prints one JSON object.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train_loop import SPARE

import hushgrad.study.sweep.folder
import hushgrad.study.sweep.results
import hushgrad.study.sweep.table
from hushgrad.accounting import read_ledger
from hushgrad.cli.main import main as hushgrad_command
from hushgrad.study.report.sweep_facts import sweep_facts
from hushgrad.study.sweep.folder import SweepFolder

RUNS = tuple(f"digits-0-1-B=80-epsilon=5-seed={seed}" for seed in range(2))
KILLED = RUNS[1]
PLAN = (
    *("--epsilons", "5", "--delta", "1e-3", "--seeds", "2", "--classes", "0,1", "--no-baseline", "--epochs", "3"),
    *("--batch-sizes", "80", "--spare-steps", str(SPARE), "--cores", "1"),
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, is_lit: Callable[..., bool] = lambda *arguments: True) -> None:
    call = getattr(owner, name)

    def replaced(*arguments: Any, **named: Any) -> Any:
        if is_lit(*arguments):
            die()
        return call(*arguments, **named)

    setattr(owner, name, replaced)


def after(owner: Any, name: str, is_lit: Callable[..., bool] = lambda *arguments: True) -> None:
    call = getattr(owner, name)

    def replaced(*arguments: Any, **named: Any) -> Any:
        result = call(*arguments, **named)
        if is_lit(*arguments):
            die()
        return result

    setattr(owner, name, replaced)


def _is_killed_run_here(folder: SweepFolder, name: str) -> bool:
    return name == KILLED and (folder.working(name) / "summary.json").exists()


POINTS: dict[str, Callable[[], None]] = {
    "before the plan": lambda: before(hushgrad.study.sweep.folder, "replace_file"),
    "after the plan": lambda: after(hushgrad.study.sweep.folder, "replace_file"),
    "before a run takes its place": lambda: before(SweepFolder, "settle", _is_killed_run_here),
    "after a run took its place": lambda: after(
        SweepFolder, "settle", lambda folder, name: name == KILLED and folder.is_finished(name)
    ),
    "before the tables": lambda: before(hushgrad.study.sweep.results, "write_tables"),
    "between the tables": lambda: before(hushgrad.study.sweep.table, "csv_text"),
    "before the pictures": lambda: before(hushgrad.study.sweep.results, "pictures_of"),
}
"""Points of the sweep's own process; those of a run are train_loop's."""


def sweep(folder: Path, point: str | None, step: int, victims: str, words: tuple[str, ...]) -> None:
    (folder / "sweep").write_text(str(os.getpid()))
    stub = folder / "python"
    worker = [sys.executable, str(Path(__file__).with_name("sweep_worker.py")), str(folder), KILLED]
    stub.write_text(f"#!/bin/sh\nexec {shlex.join([*worker, point or 'none', str(step), victims])}\n")
    stub.chmod(0o700)
    sys.executable = str(stub)
    if point in POINTS:
        POINTS[point]()
    hushgrad_command.main(["sweep", *words], standalone_mode=False)


def forked(folder: Path, point: str | None, step: int, victims: str, words: tuple[str, ...]) -> int:
    child = os.fork()
    if child == 0:
        status = 0
        try:
            os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
            sweep(folder, point, step, victims, words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            status = 99
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def counted(folder: Path, name: str) -> tuple[int, int]:
    """Return how many steps all attempts of a run are charged, and how many updates were written."""
    out, witness = folder / "out", folder / f"{name}.witness"
    places = [out / "runs" / name, out / "working" / name, *(out / "abandoned").glob(f"{name}-*")]
    ledgers = [place / "ledger.jsonl" for place in places]
    charged = sum(read_ledger(path).steps for path in ledgers if path.exists())
    return charged, witness.stat().st_size if witness.exists() else 0


def end_of(folder: Path, name: str) -> dict[str, Any]:
    run = folder / "out" / "runs" / name
    summary = json.loads((run / "summary.json").read_text())
    measured = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    said = {key: summary[key] for key in ("status", "steps", "planned_steps", "lost_steps")}
    return {**said, "measured": measured, "own_charges": read_ledger(run / "ledger.jsonl").steps}


def finished(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted((folder / "out" / "runs").glob("*/*"))}


def main(folder: Path, point: str, step: int, victims: str) -> None:
    """Kill, resume, and print what was found."""
    out = folder / "out"
    status = forked(folder, point, step, victims, (*PLAN, "--out", str(out)))
    at_death = {name: counted(folder, name) for name in RUNS}
    whole = finished(folder)
    has_plan = (out / "plan.json").exists()
    words = ("--resume", str(out), "--cores", "1") if has_plan else (*PLAN, "--out", str(out))
    again = forked(folder, None, 0, "", words)
    found: dict[str, Any] = {
        "status": status,
        "again": again,
        "finished_at_death": len({Path(one).parent for one in whole}),
    }
    if again == 0:
        facts = sweep_facts(out)
        found["kept"] = all(finished(folder).get(path) == time for path, time in whole.items())
        found["contradictions"] = [row["what"] for row in facts["agreement"] if not row["held"]]
        found["rows"] = [row["status"] for row in json.loads((out / "table.json").read_text())["runs"]]
        found["total"] = facts["choosing"]["all_private_attempts"]
        found["largest"] = max(row["epsilon"] for row in facts["runs"])
        found["left"] = sorted(
            str(path.relative_to(out)) for kind in ("working", "failures") for path in (out / kind).iterdir()
        )
        found["runs"] = {
            name: {**dict(zip(("charged", "released"), counted(folder, name), strict=True)), **end_of(folder, name)}
            for name in RUNS
        }
    print(json.dumps({**found, "at_death": at_death}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
