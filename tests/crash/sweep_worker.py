"""A worker of a sweep that is killed at a named point of one of its runs, or kills its sweep there.

Run as a program in place of `-m hushgrad.study.sweep.worker`: `sweep_worker.py FOLDER RUN POINT STEP VICTIMS`. Each
run's witness, in FOLDER, gets one byte for each update that the optimizer has written.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from train_loop import POINTS, Fuse, Witnessed

from hushgrad.study.configuration import OPTIMIZERS
from hushgrad.study.sweep import worker


class SweepFuse(Fuse):
    """Ends the sweep, the worker or both: whoever is in `victims`."""

    def __init__(self, step: int, folder: Path, victims: str) -> None:
        super().__init__(step)
        self._folder, self._victims = folder, victims

    def end(self) -> None:
        if "sweep" in self._victims:
            os.kill(int((self._folder / "sweep").read_text()), signal.SIGKILL)
        if "worker" in self._victims:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, killed: str, point: str, step: int, victims: str) -> int:
    """Do the work of a worker, to its end or to the point."""
    fuse = SweepFuse(step, folder, victims)
    work = worker.work

    class Counted(Witnessed):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            fuse.done += 1
            return result

    def watched(job: dict[str, Any], out: Path, threads: int) -> str:
        Counted.witness = os.open(folder / f"{out.name}.witness", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        OPTIMIZERS["sgd"] = lambda parameters, rate, momentum: Counted(parameters, lr=rate, momentum=momentum)
        if out.name == killed and point in POINTS:
            POINTS[point](fuse)
        return work(job, out, threads)

    worker.work = watched
    return worker.main()


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
    sys.stdout.flush()
    os._exit(code)
