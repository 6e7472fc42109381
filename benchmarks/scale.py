"""How what is kept and computed beside training grows: ledgers, ε, draws; the exponent e of time ≈ c·sizeᵉ.

    python -m benchmarks.scale            # minutes; --json FILE writes the figures down

Nothing here should grow faster than in proportion (e = 1). Making the files is not timed, and waits for no disk.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch

from hushgrad.accounting import PoissonSampled, epsilon
from hushgrad.accounting.composition import of_accounts
from hushgrad.accounting.ledger.contract import Contract
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.randomness import KeyStream
from hushgrad.sampling import PoissonSampling

STEP = PoissonSampled(1e-4, 1.1)
CONTRACT = Contract("observed", "operating system")
DELTAS = (1e-6 * (1 - 1e-6 * n) for n in itertools.count())
"""Never the same one again, so that nothing that was computed before is found."""


@dataclass(frozen=True)
class Part:
    """Something that is timed at several sizes.

    Attributes:
        title: what it is.
        sizes: growing.
        begun: from a size and an empty folder to what is called and timed.
    """

    title: str
    sizes: tuple[int, ...]
    begun: Callable[[int, Path], Callable[[], Any]]


@dataclass(frozen=True)
class Grown:
    """Seconds at each size (the median of three), and the exponent over the upper half of the sizes."""

    title: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    exponent: float


def _no_disk() -> Any:
    return mock.patch.object(os, "fsync", return_value=None)


def _written(size: int, folder: Path) -> Path:
    """Write a ledger of so many records, one for each step."""
    path = folder / "ledger.jsonl"
    with _no_disk(), Ledger(path, contract=CONTRACT) as ledger:
        for _ in range(size):
            ledger.charge(STEP)
    return path


def _charges(size: int, folder: Path) -> Callable[[], None]:
    def charge() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            _written(size, Path(own))

    return charge


def _reading(size: int, folder: Path) -> Callable[[], None]:
    path = _written(size, folder)

    def read() -> None:
        assert read_ledger(path).steps == size

    return read


def _going_on(size: int, folder: Path) -> Callable[[], None]:
    path = _written(size, folder)

    def go_on() -> None:
        with _no_disk(), Ledger(path, contract=CONTRACT) as ledger:
            assert ledger.steps >= size

    return go_on


def _epsilon(size: int, folder: Path) -> Callable[[], None]:
    def compute() -> None:
        assert epsilon([(STEP, size)], next(DELTAS)) > 0

    return compute


def _kinds(size: int, folder: Path) -> Callable[[], None]:
    events = [(PoissonSampled(1e-3, 1 + k / 1000), 10) for k in range(size)]

    def compute() -> None:
        assert epsilon(events, next(DELTAS)) > 0

    return compute


def _accounts(size: int, folder: Path) -> Callable[[], None]:
    accounts = [[(STEP, 100)] for _ in range(size)]

    def compute() -> None:
        assert epsilon(of_accounts(accounts), next(DELTAS)) > 0

    return compute


def _draw(size: int, folder: Path) -> Callable[[], None]:
    draws = PoissonSampling(256 / size).sampler(size, KeyStream.from_operating_system()).one_pass(1000, 0)

    def draw() -> None:
        for _ in range(100):
            next(draws)

    return draw


PARTS = (
    Part("charges, each a record in a file", (1_000, 10_000, 100_000), _charges),
    Part("a ledger is read and verified, by its records", (1_000, 10_000, 100_000, 300_000), _reading),
    Part("a ledger is opened to go on, by its records", (1_000, 10_000, 100_000, 300_000), _going_on),
    Part("ε of a plan, by its steps", (100, 10_000, 1_000_000), _epsilon),
    Part("ε of an account, by its different kinds of steps", (10, 30, 100), _kinds),
    Part("ε of several runs together, by their number", (10, 100, 1_000, 10_000), _accounts),
    Part("100 draws of about 256 records, by the data set's records", (10**5, 10**6, 10**7, 10**8), _draw),
)


def grown(part: Part, sizes: Sequence[int] | None = None) -> Grown:
    """Time a part at its sizes."""
    chosen, seconds = tuple(sizes or part.sizes), []
    for size in chosen:
        with tempfile.TemporaryDirectory() as folder:
            call, times = part.begun(size, Path(folder)), []
            for _ in range(3):
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
        seconds.append(statistics.median(times))
    upper = slice((len(chosen) - 1) // 2, None)
    slope = np.polyfit([math.log(size) for size in chosen[upper]], [math.log(t) for t in seconds[upper]], 1)[0]
    return Grown(part.title, chosen, tuple(seconds), float(slope))


def table(found: Sequence[Grown]) -> str:
    """Return what was measured as a table."""
    lines = ["| what | sizes | seconds | exponent |", "|---|---|---|---|"]
    for part in found:
        sizes = ", ".join(f"{size:,}" for size in part.sizes)
        seconds = ", ".join(f"{second:.2g}" for second in part.seconds)
        lines.append(f"| {part.title} | {sizes} | {seconds} | {part.exponent:.2f} |")
    return "\n".join(lines)


@click.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
def main(json_file: Path | None) -> None:
    """Time all parts at all their sizes, on this machine."""
    torch.set_num_threads(1)
    found = []
    for part in PARTS:
        found.append(grown(part))
        click.echo(table(found[-1:]), err=True)
    click.echo(table(found))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(part) for part in found], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
