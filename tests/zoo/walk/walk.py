"""Walks all architectures and adapters in a few processes, and writes what came of each as JSON.

    python tests/zoo/walk/walk.py [--jobs 2] [--only NAME ...] [--out FILE]

`--keep` takes what is in the file already for all others. docs/structures.md is written from the file.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ZOO = Path(__file__).resolve().parents[1]
RESULTS = ZOO / "walk" / "results.json"
LIMIT_S = 120


class Worker:
    """A process that judges one program after the other; a new one is started where it died or took too long."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def judged(self, name: str) -> dict[str, Any]:
        """Return what comes of a program."""
        process = self._process = self._process or _started()
        assert process.stdin is not None
        assert process.stdout is not None
        print(name, file=process.stdin, flush=True)
        ready, _, _ = select.select([process.stdout], [], [], LIMIT_S)
        line = process.stdout.readline() if ready else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.end()
        verdict, detail = ("untyped", "the process died") if ready else ("unfed", f"took more than {LIMIT_S} seconds")
        return {"name": name, "verdict": verdict, "detail": detail}

    def end(self) -> None:
        """Stop the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _started() -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__, "--serve"], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def serve() -> None:
    """Judge what is named on the standard input, a line for each; models may print what they like elsewhere."""
    sys.path.insert(0, str(ZOO))
    import torch

    from walk.catalogue import PROGRAMS
    from walk.judging import judged

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name = line.strip()
        print(json.dumps(judged(name, PROGRAMS[name]).as_json()), file=answers, flush=True)


def walked(names: list[str], jobs: int) -> dict[str, dict[str, Any]]:
    """Return what came of each program, printed as it comes."""
    waiting = iter(names)

    def work() -> Iterator[dict[str, Any]]:
        worker = Worker()
        for name in waiting:  # of all threads: a list's iterator gives each name once
            one = worker.judged(name)
            print(f"{name}: {one['verdict']} {one['detail'][:120]}", flush=True)
            yield one
        worker.end()

    with ThreadPoolExecutor(jobs) as threads:
        parts = [threads.submit(lambda: list(work())) for _ in range(jobs)]
        return {one["name"]: one for part in parts for one in part.result()}


def main() -> None:
    """Read the arguments and walk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    sys.path.insert(0, str(ZOO))
    from walk.catalogue import PROGRAMS, VERSIONS

    kept = json.loads(options.out.read_text(encoding="utf-8"))["programs"] if options.keep else {}
    found = {**kept, **walked(options.only or list(PROGRAMS), options.jobs)}
    result = {"versions": VERSIONS, "programs": found}
    options.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
