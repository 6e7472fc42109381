"""Programs that run in several processes at once, each a fork that has imported torch."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hushgrad.gradients.machine import CPU, FILE_VARIABLE

sys.path.insert(0, str(Path(__file__).parent))

LONGEST_S = 120
"""A program that is at work for longer hangs, which is a failure."""


class Ended(NamedTuple):
    """How one process ended: its exit status, and what its last line said."""

    status: int
    told: Any
    errors: str


@pytest.fixture
def scattering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The plan of a machine on which no sum of a sharded model is kept whole."""
    plan_of(monkeypatch, tmp_path, sum_bytes=0)


@pytest.fixture
def letting_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same, on which no operands are kept until a backward has ended, either."""
    plan_of(monkeypatch, tmp_path, sum_bytes=0, operand_bytes=0)


def plan_of(monkeypatch: pytest.MonkeyPatch, folder: Path, **budgets: int) -> None:
    path = folder / "machine"
    path.write_text(json.dumps({"cpu": asdict(replace(CPU, **budgets))}))
    monkeypatch.setenv(FILE_VARIABLE, str(path))


@pytest.fixture
def in_processes(forked_python: str, tmp_path: Path) -> Callable[..., list[Ended]]:
    """Run `WORKER SCENARIO ARGUMENTS` in so many processes; returns how each ended, by rank."""

    def run(count: int, scenario: str, *, worker: str = "process_worker.py", **arguments: Any) -> list[Ended]:
        program = Path(__file__).with_name(worker)
        place = len(list(tmp_path.glob("store*")))
        told = {"store": str(tmp_path / f"store{place}"), "folder": str(tmp_path), **arguments}
        processes = [
            subprocess.Popen(
                [forked_python, str(program), scenario, json.dumps(told)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": str(count)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(count)
        ]  # fmt: skip
        outputs: list[tuple[str, str]] = [("", "")] * count

        def read(rank: int) -> None:
            outputs[rank] = processes[rank].communicate()

        readers = [threading.Thread(target=read, args=(rank,)) for rank in range(count)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(LONGEST_S)
        hung = [rank for rank, process in enumerate(processes) if process.poll() is None]
        for rank in hung:
            processes[rank].kill()
        assert not hung, f"ranks {hung} hang"
        return [
            Ended(process.returncode, _last(out), errors)
            for process, (out, errors) in zip(processes, outputs, strict=True)
        ]

    return run


def _last(output: str) -> Any:
    lines = output.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith(("{", "[")) else None
