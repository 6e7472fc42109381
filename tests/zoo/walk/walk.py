"""Walks all architectures and adapters in a few processes, and writes what came of each as JSON.

python tests/zoo/walk/walk.py [--jobs 2] [--only NAME ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ZOO = Path(__file__).resolve().parents[1]
RESULTS = ZOO / "walk" / "results.json"
LIMIT_S = 90


class Worker:
    """A process that judges one program after the other."""

    def __init__(self) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment,
        )  # fmt: skip
        self.name = ""
        self.began = 0.0

    def give(self, name: str) -> None:
        assert self.process.stdin is not None
        self.name, self.began = name, time.monotonic()
        print(name, file=self.process.stdin, flush=True)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def serve() -> None:
    """Judge what is named on the standard input, a line for each."""
    sys.path.insert(0, str(ZOO))
    import torch
    from walk.programs import PROGRAMS

    from walk.judging import judged

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name = line.strip()
        print(json.dumps(judged(name, PROGRAMS[name]).as_json()), file=answers, flush=True)


def walked(names: list[str], jobs: int) -> dict[str, dict[str, Any]]:
    """Return what came of each program."""
    waiting = list(names)
    found: dict[str, dict[str, Any]] = {}
    workers = [Worker() for _ in range(min(jobs, len(waiting)))]
    for worker in workers:
        worker.give(waiting.pop(0))
    while workers:
        pipes = {worker.process.stdout: worker for worker in workers}
        ready, _, _ = select.select(list(pipes), [], [], 1.0)
        for worker in list(workers):
            line = worker.process.stdout.readline() if worker.process.stdout in ready else None
            late = time.monotonic() - worker.began > LIMIT_S
            if line is None and not late:
                continue
            if line:
                found[worker.name] = json.loads(line)
            else:
                found[worker.name] = {
                    "name": worker.name,
                    "verdict": "unfed",
                    "detail": "took too long" if late else "died",
                }
                worker.end()
                workers[workers.index(worker)] = worker = Worker()
            one = found[worker.name] if worker.name else None
            if one:
                print(one["name"], one["verdict"], one.get("seconds"), one["detail"][:150], flush=True)
            if waiting:
                worker.give(waiting.pop(0))
            else:
                worker.end()
                workers.remove(worker)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    sys.path.insert(0, str(ZOO))
    from walk.programs import PROGRAMS

    names = options.only or list(PROGRAMS)
    found = walked(names, options.jobs)
    options.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
