"""Draws of a scheme that says less of itself than Poisson sampling: honest ones pass, and what costs more is found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hushgrad.checks.verification.checks.draws import DRAWS, read_draws

N, K = 60, 12
FALSE_ALARM = 1e-6

Draw = Callable[[np.random.Generator, int], np.ndarray]


def fixed(source: np.random.Generator, step: int) -> np.ndarray:
    return source.permutation(N)[:K]


def rates(source: np.random.Generator, step: int) -> np.ndarray:
    """The first half is drawn at 0.2, the others at 0.05."""
    return np.flatnonzero(source.random(N) < np.where(np.arange(N) < N // 2, 0.2, 0.05))


def everybody_or_nobody(source: np.random.Generator, step: int) -> np.ndarray:
    return np.arange(N if source.random() < 0.2 else 0)


def read(draw: Draw, *, inclusion: float = 0.2, size: float = K, afresh: bool = True, seed: int = 0) -> set[str]:
    source = np.random.default_rng(seed)
    reading = read_draws(
        [draw(source, step) for step in range(DRAWS)],
        population=N,
        inclusion=inclusion,
        expected_size=size,
        largest_batch=None,
        draws_afresh=afresh,
        false_alarm=FALSE_ALARM,
    )
    failed = {name for name, check in reading.checks.items() if not check.passed}
    assert len(reading.causes) == len(failed)
    return failed


@pytest.mark.statistical
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("draw", "size"), [(fixed, K), (rates, 7.5), (everybody_or_nobody, 12)])
def test_draws_as_described_pass_whatever_their_law(draw: Draw, size: float, seed: int) -> None:
    """False alarm 1e-6 each."""
    assert read(draw, size=size, seed=seed) == set()


def taking_turns(source: np.random.Generator, step: int) -> np.ndarray:
    return np.arange(N)[step % (N // K) :: N // K]


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("draw", "found"),
    [
        (lambda source, step: source.permutation(N)[: K + 3], {"sampling-rate", "sampling-sizes"}),
        (lambda source, step: source.permutation(N)[: K // 2], {"sampling-sizes"}),
        (
            lambda source, step: np.array([0, *(1 + source.permutation(N - 1)[: K - 1])]),
            {"sampling-rate", "sampling-overlaps"},
        ),
        (lambda source, step: source.integers(0, N, K), {"sampling-range"}),
        (lambda source, step: source.permutation(N + 1)[:K], {"sampling-range"}),
        (lambda source, step: fixed(np.random.default_rng(step // 2), 0), {"sampling-overlaps"}),
        (taking_turns, {"sampling-overlaps"}),
    ],
    ids=["more", "fewer", "one always", "twice", "nobody", "again", "turns"],
)
def test_draws_that_cost_more_are_found(draw: Draw, found: set[str]) -> None:
    assert found <= read(draw)


@pytest.mark.statistical
def test_of_draws_that_depend_on_one_another_each_is_looked_at_by_itself() -> None:
    assert read(taking_turns, afresh=False) == set()
    assert read(lambda source, step: source.integers(0, N, K), afresh=False) == {"sampling-range"}
