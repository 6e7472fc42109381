"""What noise on a grid costs: the sum of clipped gradients and its noise, in float64 on a grid against float32.

    python -m benchmarks.grid_noise [--rounds 60]

Both ways in turn, in one run on one thread, by the processor time of that thread, which waits of a shared machine leave
out: the draw alone, and the weighted sum of a batch with the draw. What a step does besides (forward, backward, norms,
the optimizer) is the same both ways and left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console

from benchmarks.timing import Interval, median_interval
from hushgrad.gradients.accumulation import AsTheyCome, InFloat64
from hushgrad.gradients.contribution import Contribution
from hushgrad.gradients.convolution import Convolution, Geometry
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.rows import Rows
from hushgrad.mechanism import GaussianNoise, GridNoise
from hushgrad.noise.gaussian import Noised
from hushgrad.randomness import Address, KeyStream


def linear(batch: int, positions: int, inputs: int, outputs: int) -> Contribution:
    """Return the gradients of a linear layer."""
    return OuterProducts(torch.randn(batch, positions, outputs), torch.randn(batch, positions, inputs))


def embedding(batch: int, positions: int, rows: int, width: int) -> Contribution:
    """Return the gradients of an embedding."""
    return Rows(torch.randint(rows, (batch, positions)), torch.randn(batch, positions, width), rows)


def convolution(batch: int, channels: int, side: int) -> Contribution:
    """Return the gradients of a convolution of 3 × 3 with as many channels out as in."""
    geometry = Geometry((channels, channels, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    image = (batch, channels, side, side)
    return Convolution(torch.randn(image), torch.randn(image), geometry)


def _pair(first: Callable[[], None], second: Callable[[], None], in_order: bool) -> tuple[float, float]:
    """Return the processor time of both in milliseconds; which of them runs first changes from pair to pair."""
    taken = {}
    for run in (first, second) if in_order else (second, first):
        start = time.thread_time_ns()
        run()
        taken[run] = (time.thread_time_ns() - start) * 1e-6
    return taken[first], taken[second]


CASES: dict[str, Callable[[], Contribution]] = {
    "linear 784 → 1,000, 256 records": lambda: linear(256, 1, 784, 1000),
    "linear 768 → 768, 32 records of 64 positions": lambda: linear(32, 64, 768, 768),
    "convolution 3 × 3, 64 channels, 32 records of 16 × 16": lambda: convolution(32, 64, 16),
    "embedding of 20,000 rows of 64, 256 records of 32": lambda: embedding(256, 32, 20_000, 64),
    "kept gradients of 100,000 values, 32 records": lambda: Dense(torch.randn(32, 100_000)),
}


def costs(rounds: int) -> list[tuple[str, int, Interval, Interval, Interval]]:
    """Return for each case its values, milliseconds in float32 and on the grid, and their paired ratio."""
    stream, step = KeyStream.from_operating_system(), 0
    ordinary, grid = GaussianNoise(1.0), GridNoise(1.0)
    found = []

    def noised(noise: GaussianNoise | GridNoise, total: torch.Tensor) -> None:
        nonlocal step
        step += 1
        part = Noised(total, Address(step), overwrite=True)
        noise.updates(stream, [part], sensitivity=1.0, divisor=256.0)

    def both(name: str, first: Callable[[], None], second: Callable[[], None], values: int) -> None:
        pairs = [_pair(first, second, number % 2 == 0) for number in range(rounds + 3)][3:]
        before, after = (median_interval(column) for column in zip(*pairs, strict=True))
        found.append((name, values, before, after, median_interval([b / a for a, b in pairs])))

    narrow, wide = torch.zeros(1 << 20), torch.zeros(1 << 20, dtype=torch.float64)
    both("the draw alone", lambda: noised(ordinary, narrow), lambda: noised(grid, wide), 1 << 20)
    for name, make in CASES.items():
        part, how = make(), AsTheyCome()
        weights = torch.rand(part.batch_size, dtype=torch.float64)
        values = how.sum(part, weights).numel()
        both(
            name,
            lambda part=part, weights=weights: noised(ordinary, AsTheyCome().sum(part, weights)),  # type: ignore[misc]
            lambda part=part, weights=weights: noised(grid, InFloat64().sum(part, weights)),  # type: ignore[misc]
            values,
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grid_noise", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args(arguments).rounds
    torch.set_num_threads(1)
    say = Console(width=150).print
    say("| sum and noise | values | float32 | on a grid | ratio (95% interval) |")
    for name, values, before, after, ratio in costs(rounds):
        say(
            f"| {name} | {values:,} | {before.median:.2f} ms | {after.median:.2f} ms | {ratio.median:.2f} "
            f"({ratio.low:.2f} to {ratio.high:.2f}) |",
            highlight=False,
            markup=False,
        )


if __name__ == "__main__":
    main()
