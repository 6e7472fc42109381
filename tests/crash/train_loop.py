"""Kills `hushgrad train` with SIGKILL at a named point, and resumes it.

Run as a program: `train_loop.py FOLDER POINT STEP`; prints one JSON object. A witness gets one byte for each update
that the optimizer has written, so that what was released can be compared with what was charged.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import hushgrad.study.run
from hushgrad.accounting import read_ledger
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.errors import InvalidArgumentError
from hushgrad.session.update import Update
from hushgrad.study.checkpointing import RunCheckpoint
from hushgrad.study.configuration import OPTIMIZERS, Privacy, RunConfig, suggested_run
from hushgrad.study.directory import RunDirectory
from hushgrad.study.report.agreement import agreement
from hushgrad.study.report.run_files import RunFiles
from hushgrad.study.resuming import resume
from hushgrad.study.run import Reporter, run
from hushgrad.study.tasks import TaskOptions

STEPS, SPARE, DELTA = 12, 12, 1e-3


class Fuse:
    """Ends the process before or after a call of a function, once so many steps are done."""

    def __init__(self, step: int) -> None:
        self.done = 0
        self._step = step

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before(self, owner: Any, name: str, *, at_any_step: bool = False) -> None:
        self._replace(owner, name, at_any_step, is_before=True)

    def after(self, owner: Any, name: str, *, at_any_step: bool = False) -> None:
        self._replace(owner, name, at_any_step, is_before=False)

    def _replace(self, owner: Any, name: str, at_any_step: bool, *, is_before: bool) -> None:
        call = getattr(owner, name)

        def die() -> None:
            if at_any_step or self.done >= self._step:
                self.end()

        def replaced(*args: Any, **kwargs: Any) -> Any:
            if is_before:
                die()
            result = call(*args, **kwargs)
            if not is_before:
                die()
            return result

        setattr(owner, name, replaced)


class Witnessed(torch.optim.SGD):
    """SGD that tells a file of each update that it has written."""

    witness = -1

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        os.write(self.witness, b".")
        return self.written(result)

    def written(self, result: Any) -> Any:
        return result


POINTS: dict[str, Callable[[Fuse], None]] = {
    "before training": lambda fuse: fuse.before(hushgrad.study.run, "carry_out", at_any_step=True),
    "before the first checkpoint": lambda fuse: fuse.before(RunCheckpoint, "save", at_any_step=True),
    "after the charge": lambda fuse: fuse.after(Ledger, "charge"),
    "before the noise": lambda fuse: fuse.before(Update, "write"),
    "after the update": lambda fuse: fuse.after(Witnessed, "written"),
    "before a measurement": lambda fuse: fuse.before(RunDirectory, "append_measurement"),
    "between measurement and checkpoint": lambda fuse: fuse.after(RunDirectory, "append_measurement"),
    "before a file takes its place": lambda fuse: fuse.before(os, "replace"),
    "after the checkpoint": lambda fuse: fuse.after(RunCheckpoint, "save"),
    "before the summary": lambda fuse: fuse.before(RunDirectory, "write_summary"),
    "between summary and model": lambda fuse: fuse.after(RunDirectory, "write_summary"),
    "after the model": lambda fuse: fuse.after(RunDirectory, "write_model"),
    "before the curves": lambda fuse: fuse.before(hushgrad.study.run, "draw_curves", at_any_step=True),
    "before the checkpoint is removed": lambda fuse: fuse.before(Path, "unlink", at_any_step=True),
}


def config() -> RunConfig:
    privacy = Privacy(target_epsilon=5.0, delta=DELTA, max_grad_norm=1.0, spare_steps=SPARE)
    suggested = suggested_run("digits", privacy=privacy, options=TaskOptions(classes=("0", "1")))
    return replace(suggested, batch_size=80, epochs=3, average_decay=0.9)


def train(folder: Path, point: str | None, step: int) -> None:
    """Train from where the folder says to the end, or to a point."""
    fuse = Fuse(step)
    Witnessed.witness = os.open(folder / "witness", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    OPTIMIZERS["sgd"] = lambda parameters, rate, momentum: Witnessed(parameters, lr=rate, momentum=momentum)
    if point is not None:
        POINTS[point](fuse)

    def count(done: int) -> None:
        fuse.done = done

    reporter = Reporter(on_step=count)
    out = folder / "run"
    try:
        resume(out, reporter) if out.exists() else run(config(), out, reporter)
    except InvalidArgumentError as error:  # it was killed when nothing was left to do but to tidy up
        if not error.what.startswith("the run is completed"):
            raise
    summary = json.loads((out / "summary.json").read_text())
    wrong = [row.what for row in agreement(RunFiles.read(out), DELTA) if not row.held]
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    said = {name: summary[name] for name in ("status", "steps", "planned_steps", "lost_steps")}
    files = sorted(path.name for path in out.iterdir())
    (folder / "end").write_text(json.dumps({**said, "contradictions": wrong, "measured": steps, "files": files}))


def forked(folder: Path, point: str | None, step: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            train(folder, point, step)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def counted(folder: Path) -> tuple[int, int]:
    """Return how many steps are charged, and how many updates were written."""
    ledger, witness = folder / "run" / "ledger.jsonl", folder / "witness"
    return read_ledger(ledger).steps if ledger.exists() else 0, witness.stat().st_size


def main(folder: Path, point: str, step: int) -> None:
    """Kill one process, resume in another one, and print what was found."""
    torch.set_num_threads(1)
    killed = forked(folder, point, step)
    charged_at_death, released_at_death = counted(folder)
    finished = forked(folder, None, 0)
    end = json.loads((folder / "end").read_text()) if finished == 0 else {}
    charged, released = counted(folder)
    at_death = {"charged_at_death": charged_at_death, "released_at_death": released_at_death}
    told = {"killed": killed == -signal.SIGKILL, "finished": finished == 0, "charged": charged, "released": released}
    print(json.dumps({**told, **at_death, **end}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
