"""Samplers with one planted bug each, all charged as Poisson sampling of N records with rate Q."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.random import Generator

N, Q, STEPS = 1000, 0.03, 4000
SIZE = round(N * Q)
Draws = list[np.ndarray]
Sampler = Callable[[Generator], Iterator[np.ndarray]]


def poisson(source: Generator, rate: float = Q) -> Iterator[np.ndarray]:
    while True:
        yield np.flatnonzero(source.random(N) < rate)


def one_percent_more(source: Generator) -> Iterator[np.ndarray]:
    return poisson(source, 1.01 * Q)


def rate_of_the_batch_before_last(source: Generator) -> Iterator[np.ndarray]:
    return poisson(source, Q / 2)


def shuffled(source: Generator) -> Iterator[np.ndarray]:
    while True:
        order = source.permutation(N)
        yield from (order[start : start + SIZE] for start in range(0, N - SIZE + 1, SIZE))


def in_order(source: Generator) -> Iterator[np.ndarray]:
    while True:
        yield from (np.arange(start, start + SIZE) for start in range(0, N - SIZE + 1, SIZE))


def fixed_size(source: Generator) -> Iterator[np.ndarray]:
    while True:
        yield source.choice(N, SIZE, replace=False)


def with_replacement(source: Generator) -> Iterator[np.ndarray]:
    while True:
        yield source.integers(0, N, SIZE)


def seeded_in_every_pass(source: Generator) -> Iterator[np.ndarray]:
    while True:
        again = poisson(np.random.default_rng(3))
        yield from (next(again) for _ in range(100))


def capped(source: Generator) -> Iterator[np.ndarray]:
    return (draw[: SIZE + 4] for draw in poisson(source))


def held_out_half(source: Generator) -> Iterator[np.ndarray]:
    while True:
        yield np.flatnonzero(source.random(N // 2) < 2 * Q)


def weighted(source: Generator) -> Iterator[np.ndarray]:
    rates = np.where(np.arange(N) < N // 2, 1.2 * Q, 0.8 * Q)
    while True:
        yield np.flatnonzero(source.random(N) < rates)


def in_blocks(source: Generator) -> Iterator[np.ndarray]:
    while True:
        chosen = np.flatnonzero(source.random(N // 2) < Q)
        yield np.sort(np.concatenate([2 * chosen, 2 * chosen + 1]))


def each_draw_twice(source: Generator) -> Iterator[np.ndarray]:
    for draw in poisson(source):
        yield draw
        yield draw


def half_of_the_last_draw(source: Generator) -> Iterator[np.ndarray]:
    last = np.empty(0, np.int64)
    for draw in poisson(source):
        kept = last[source.random(len(last)) < 0.5]
        new = draw[source.random(len(draw)) < 0.52]
        last = np.union1d(kept, new)
        yield last


def without_empty_draws(source: Generator) -> Iterator[np.ndarray]:
    """For a small data set, where one draw in five is empty."""
    while True:
        draw = np.flatnonzero(source.random(50) < Q)
        if len(draw):
            yield draw


PLANTED: dict[str, tuple[Sampler, tuple[str, ...], int]] = {
    "one_percent_more": (one_percent_more, ("sampling-rate",), N),
    "rate_of_the_batch_before_last": (rate_of_the_batch_before_last, ("sampling-rate",), N),
    "shuffled": (shuffled, ("sampling-shuffled",), N),
    "in_order": (in_order, ("sampling-shuffled", "sampling-repeated"), N),
    "fixed_size": (fixed_size, ("sampling-fixed-size",), N),
    "with_replacement": (with_replacement, ("sampling-with-replacement",), N),
    "seeded_in_every_pass": (seeded_in_every_pass, ("sampling-repeated",), N),
    "capped": (capped, ("sampling-capped",), N),
    "held_out_half": (held_out_half, ("sampling-left-out",), N),
    "weighted": (weighted, ("sampling-unequal",), N),
    "in_blocks": (in_blocks, ("sampling-blocks",), N),
    "each_draw_twice": (each_draw_twice, ("sampling-repeated",), N),
    "half_of_the_last_draw": (half_of_the_last_draw, ("sampling-dependent", "sampling-unequal"), N),
    "without_empty_draws": (without_empty_draws, ("sampling-empty-skipped",), 50),
}
