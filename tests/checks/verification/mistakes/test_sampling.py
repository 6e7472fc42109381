"""Draws that are not what is charged have one cause each, named by a stable code; right draws have none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hushgrad.checks.verification.checks.sampling import read_sampling
from hushgrad.checks.verification.verdict import Cause

N, Q, STEPS = 400, 0.05, 1200
Draw = Callable[[np.random.Generator, int], np.ndarray]


def causes(draw: Draw, population: int = N) -> tuple[Cause, ...]:
    source = np.random.default_rng(9)
    draws = [draw(source, step) for step in range(STEPS)]
    return read_sampling(draws, population=population, rate=Q, false_alarm=1e-6).causes


def poisson(source: np.random.Generator, step: int) -> np.ndarray:
    return np.flatnonzero(source.random(N) < Q)


def shuffled(source: np.random.Generator, step: int) -> np.ndarray:
    order = np.random.default_rng(step // 20).permutation(N)
    return order[step % 20 :: 20]


def never_empty(source: np.random.Generator, step: int) -> np.ndarray:
    while True:
        draw = np.flatnonzero(source.random(40) < Q)
        if draw.size:
            return draw


NAMED: dict[str, tuple[Draw, int]] = {
    "sampling-with-replacement": (lambda source, step: source.integers(0, N, 20), N),
    "sampling-repeated": (lambda source, step: poisson(np.random.default_rng(step % 50), 0), N),
    "sampling-shuffled": (shuffled, N),
    "sampling-fixed-size": (lambda source, step: source.permutation(N)[:20], N),
    "sampling-left-out": (lambda source, step: np.flatnonzero(source.random(N // 2) < 2 * Q), N),
    "sampling-blocks": (
        lambda source, step: (2 * np.flatnonzero(source.random(N // 2) < Q)[:, None] + [0, 1]).ravel(),
        N,
    ),
    "sampling-empty-skipped": (never_empty, 40),
    "sampling-capped": (lambda source, step: source.permutation(poisson(source, step))[:24], N),
    "sampling-unequal": (
        lambda source, step: np.flatnonzero(source.random(N) < np.where(np.arange(N) < N // 2, 1.3 * Q, 0.7 * Q)),
        N,
    ),
    "sampling-rate": (lambda source, step: np.flatnonzero(source.random(N) < 1.1 * Q), N),
}


@pytest.mark.statistical
@pytest.mark.parametrize("code", NAMED)
def test_each_mistake_is_named_by_its_code_with_a_cure(code: str) -> None:
    """Fixed draws."""
    draw, population = NAMED[code]
    (cause,) = causes(draw, population)
    assert cause.code == code
    assert cause.mistake.endswith(".")
    assert cause.cure.endswith(".")


@pytest.mark.statistical
def test_right_draws_have_no_cause() -> None:
    """Fixed draws; false alarm 1e-6."""
    assert causes(poisson) == ()
