"""Buffered strategies: reference values, closed forms against dense matrices, streaming."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dense_strategies import dense, worst_participation
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.errors import InvalidArgumentError
from hushgrad.strategies.buffered import BufferedStrategy
from hushgrad.strategies.optimal_buffered import optimal_buffered

GOLDEN = BufferedStrategy((0.9999528892, 0.9857068667), (0.0122853238, 0.1878393665))
SOME = BufferedStrategy((0.9, 0.3), (0.3, 0.5))


def rmse(strategy: BufferedStrategy, steps: int, apart: int) -> float:
    return math.sqrt(strategy.mean_error(steps) * strategy.sensitivity_squared(steps, apart))


def test_golden_parameters_of_jax_privacy_have_their_error() -> None:
    assert rmse(GOLDEN, 100_000, 100_000) == pytest.approx(5.022481987681812, rel=1e-9)
    assert GOLDEN.sensitivity_squared(100_000, 100_000) == pytest.approx(4.166791846703085, rel=1e-9)


@pytest.mark.parametrize(("apart", "error"), [(1000, 3.0758442767512872), (100, 12.193851565550542)])
def test_the_optimum_has_the_reference_error(apart: int, error: float) -> None:
    assert rmse(optimal_buffered(1000, apart), 1000, apart) == pytest.approx(error, rel=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 0.6), st.floats(0.65, 0.999), st.floats(0.01, 0.5), st.floats(0.01, 0.5), st.integers(2, 40))
def test_the_closed_forms_are_those_of_the_dense_matrices(
    fast: float, slow: float, one: float, other: float, steps: int
) -> None:
    strategy = BufferedStrategy((slow, fast), (one, other))
    matrix = np.tril(np.ones((steps, steps))) @ np.linalg.inv(dense(strategy, steps))
    assert strategy.mean_error(steps) == pytest.approx(float((matrix**2).sum(1).mean()), rel=1e-8)
    for apart in (1, 3, steps):
        places = np.arange(steps) % apart == 0
        total = float(((dense(strategy, steps) @ places) ** 2).sum())
        assert strategy.sensitivity_squared(steps, apart) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(("apart", "steps"), [(2, 9), (3, 11), (5, 12)])
def test_no_pattern_of_participations_adds_up_to_more(apart: int, steps: int) -> None:
    assert SOME.sensitivity_squared(steps, apart) == pytest.approx(worst_participation(SOME, steps, apart), rel=1e-12)


def test_the_sensitivity_of_a_prefix_never_falls() -> None:
    found = [GOLDEN.sensitivity_squared(steps, 7) for steps in range(1, 60)]
    assert found == sorted(found)


def test_streaming_noise_is_the_dense_inverse_and_whitening_undoes_it() -> None:
    fresh = torch.from_numpy(np.random.default_rng(6).standard_normal((50, 3)))
    memory, back = SOME.memory(), SOME.memory()
    released = torch.stack([memory.correlated(row.clone()) for row in fresh])
    assert np.allclose(released.numpy(), np.linalg.solve(dense(SOME, 50), fresh.numpy()), rtol=0, atol=1e-12)
    assert torch.allclose(torch.stack([back.whitened(row) for row in released]), fresh, rtol=0, atol=1e-12)


def test_two_buffers_do_the_work_of_99() -> None:
    """At ten participations 100 apart: within 6% of 100 bands (11.573), and a sixth of independent noise (70.7)."""
    assert rmse(optimal_buffered(1000, 100), 1000, 100) < 1.06 * 3.659599888942576 * math.sqrt(10)


@pytest.mark.parametrize(
    ("decays", "weights"),
    [
        ((0.9,), (0.1, 0.2)),
        ((1.0,), (0.1,)),
        ((0.5, 0.5), (0.1, 0.1)),
        ((0.5, 0.9), (0.6, 0.6)),
        ((0.5,), (-0.1,)),
        ("a", (0.1,)),
        ((), ()),
    ],
)
def test_series_whose_sensitivity_is_not_known_are_refused(decays: object, weights: object) -> None:
    with pytest.raises(InvalidArgumentError):
        BufferedStrategy(decays, weights)  # type: ignore[arg-type]
