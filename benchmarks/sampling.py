"""The price of a Poisson draw, from random bits to the tuple of indices, and of the loader's own work for an item.

    python -m benchmarks.sampling

Nothing is read: the data set's records are their own indices, and collating leaves them as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch.utils.data import Dataset

from benchmarks.timing import Interval, median_interval
from hushgrad.randomness import KeyStream
from hushgrad.sampling import LoadingOptions, PoissonSampling, PrivateLoader, TruncatedPoissonSampling

CASES = ((10**6, 1e-4), (10**7, 1e-4), (10**8, 1e-4), (10**9, 1e-5), (10**7, 1e-3), (60_000, 256 / 60_000))
ITEM_CASES = ((10**7, 1e-4),)


@dataclass(frozen=True)
class SamplingTimes:
    """Milliseconds, with 95% intervals of the median.

    Attributes:
        population: N.
        rate: q.
        set_up: making the sampler: the table of the sizes, once for a loader.
        draw: one logical batch: size, subset, the tuple of its indices.
    """

    population: int
    rate: float
    set_up: float
    draw: Interval


class _Indices(Dataset[int]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, indices: list[int]) -> list[int]:
        return indices

    def __getitem__(self, index: int) -> int:
        return index


def draw_times(population: int, rate: float, *, rounds: int) -> SamplingTimes:
    """Time `rounds` draws as the loader makes them."""
    began = time.perf_counter()
    sampler = PoissonSampling(rate).sampler(population, KeyStream.from_operating_system())
    set_up = time.perf_counter() - began
    draws = sampler.one_pass(rounds + 20, 0)
    for _ in range(20):
        next(draws)
    return SamplingTimes(population, rate, 1e3 * set_up, _median_ms(lambda: next(draws), rounds))


def item_times(population: int, rate: float, *, rounds: int, constant_shapes: bool) -> Interval:
    """Time an item of the loader, draw and padding included; records cost nothing and are left uncollated."""
    sampling: Any = PoissonSampling(rate)
    if constant_shapes:
        sampling = TruncatedPoissonSampling.with_room(rate, population)
    loader = PrivateLoader(
        _Indices(population),
        sampling,
        steps_per_pass=rounds + 20,
        stream=KeyStream.from_operating_system(),
        options=LoadingOptions(collate_fn=_uncollated),
        constant_shapes=constant_shapes,
    )
    items = iter(loader)
    for _ in range(20):
        next(items)
    return _median_ms(lambda: next(items), rounds)


def _uncollated(records: list[int]) -> list[int]:
    return records


def _median_ms(call: Callable[[], Any], rounds: int) -> Interval:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return median_interval(times)


def table(times: Sequence[SamplingTimes]) -> str:
    """Return the draws as a table."""
    lines = ["| N | q | records drawn, about | a draw, ms | table of sizes, once, ms |", "|---|---|---|---|---|"]
    lines += [
        f"| {part.population:.0e} | {part.rate:.3g} | {part.population * part.rate:,.0f} | "
        f"{part.draw.median:.3f} [{part.draw.low:.3f}, {part.draw.high:.3f}] | {part.set_up:.1f} |"
        for part in times
    ]
    return "\n".join(lines)


@click.command()
@click.option("--rounds", type=click.IntRange(min=20), default=300, show_default=True, help="Draws of each row.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of torch.")
def main(rounds: int, threads: int) -> None:
    """Time draws, and items of the loader, on this machine."""
    torch.set_num_threads(threads)
    click.echo(table([draw_times(*case, rounds=rounds) for case in CASES]))
    click.echo()
    for population, rate in ITEM_CASES:
        for constant_shapes in (False, True):
            found = item_times(population, rate, rounds=rounds, constant_shapes=constant_shapes)
            what = "constant shapes, truncated" if constant_shapes else "one item of every draw"
            click.echo(
                f"loader, N = {population:.0e}, q = {rate:g}, {what}: {found.median:.3f} ms an item "
                f"[{found.low:.3f}, {found.high:.3f}]"
            )


if __name__ == "__main__":
    main()
