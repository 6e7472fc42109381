"""Banded strategies: reference values, columns, sensitivity by brute force, streaming against the dense inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dense_strategies import dense, worst_participation
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.errors import InvalidArgumentError
from hushgrad.strategies.banded import INDEPENDENT, BandedStrategy, PrefixError
from hushgrad.strategies.optimal_banded import optimal_banded, square_root

FALLING = st.lists(st.floats(0.0, 1.0), min_size=0, max_size=6).map(lambda x: (1.0, *sorted(x, reverse=True)))


@pytest.mark.parametrize(
    ("steps", "bands", "rmse"),
    [
        (1000, 1, 22.371857321197094),
        (1000, 2, 15.92032174583669),
        (1000, 4, 11.43100088921121),
        (1000, 8, 8.35164232940521),
        (1000, 10, 7.590657143717805),
        (1000, 100, 3.659599888942576),
        (128, 8, 3.4328248),
    ],
)
def test_the_optimum_has_the_reference_error(steps: int, bands: int, rmse: float) -> None:
    """Those of an optimiser of their own; jax-privacy 2.0.0 agreed with b = 1, 4, 10 and n = 128 to eight digits."""
    assert math.sqrt(optimal_banded(steps, bands).mean_error(steps)) == pytest.approx(rmse, rel=1e-7)


def test_the_optimum_has_the_reference_coefficients() -> None:
    found = optimal_banded(1000, 10).values
    assert found[:3] == pytest.approx((0.486612521, 0.359302031, 0.327241219), abs=1e-7)
    assert found[-1] == pytest.approx(0.231414477, abs=1e-7)


@pytest.mark.parametrize("bands", [2, 4, 10, 100])
def test_the_square_root_cut_to_bands_has_the_reference_error_and_is_worse(bands: int) -> None:
    reference = {2: 16.691649793819355, 4: 12.521454611745504, 10: 8.611188614114543, 100: 3.8273642691892276}
    cut = BandedStrategy(tuple(square_root(bands).tolist()))
    assert math.sqrt(cut.mean_error(1000)) == pytest.approx(reference[bands], rel=1e-9)
    assert optimal_banded(1000, bands).mean_error(1000) < cut.mean_error(1000)


@settings(max_examples=30, deadline=None)
@given(FALLING, st.integers(7, 60))
def test_the_mean_error_is_that_of_the_dense_matrices(values: tuple[float, ...], steps: int) -> None:
    strategy = BandedStrategy(values)
    matrix = np.tril(np.ones((steps, steps))) @ np.linalg.inv(dense(strategy, steps))
    assert strategy.mean_error(steps) == pytest.approx(float((matrix**2).sum(1).mean()), rel=1e-9)


def test_the_closed_form_of_late_steps_is_the_sum_itself() -> None:
    c = np.array(optimal_banded(20_000, 6).values)
    b = [1 / c[0]]
    for t in range(1, 20_000):
        b.append((1 - sum(c[m] * b[t - m] for m in range(1, min(t, 5) + 1))) / c[0])
    assert PrefixError.of(c, 20_000).value == pytest.approx(float(np.cumsum(np.square(b)).mean()), rel=1e-10)


def test_the_gradient_is_that_of_the_error() -> None:
    c = square_root(5) * 0.9
    exact = PrefixError.of(c, 700, with_gradient=True).gradient
    for place in range(1, 5):
        up, down = c.copy(), c.copy()
        up[place] += 1e-6
        down[place] -= 1e-6
        measured = (PrefixError.of(up, 700).value - PrefixError.of(down, 700).value) / 2e-6
        assert exact[place - 1] == pytest.approx(measured, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(FALLING, st.integers(1, 30))
def test_no_column_of_any_prefix_has_a_norm_above_1_the_last_ones_included(
    values: tuple[float, ...], steps: int
) -> None:
    norms = np.sqrt((dense(BandedStrategy(values), steps) ** 2).sum(0))
    assert norms.max() <= 1 + 1e-15
    if steps >= len(values):
        assert norms[0] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("bands", "apart", "steps"), [(3, 3, 9), (2, 4, 10), (1, 1, 8), (4, 5, 9)])
def test_a_participation_costs_one_column_and_nothing_more(bands: int, apart: int, steps: int) -> None:
    strategy = optimal_banded(steps, bands)
    assert strategy.sensitivity_squared(steps, apart) == pytest.approx(worst_participation(strategy, steps, apart))
    # The last column of a longer run is cut off, and charged as a whole one all the same.
    later = strategy.sensitivity_squared(steps + 1, apart)
    assert later >= worst_participation(strategy, steps + 1, apart) - 1e-12


def test_participations_closer_than_the_bands_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="share rows"):
        optimal_banded(20, 4).sensitivity_squared(20, 3)


@pytest.mark.parametrize("strategy", [INDEPENDENT, optimal_banded(40, 2), optimal_banded(40, 9)])
def test_streaming_noise_is_the_dense_inverse_and_whitening_undoes_it(strategy: BandedStrategy) -> None:
    steps = 40
    fresh = torch.from_numpy(np.random.default_rng(5).standard_normal((steps, 7)))
    memory, back = strategy.memory(), strategy.memory()
    released = torch.stack([memory.correlated(row.clone()) for row in fresh])
    expected = np.linalg.solve(dense(strategy, steps), fresh.numpy())
    assert np.allclose(released.numpy(), expected, rtol=0, atol=1e-11)
    assert torch.allclose(torch.stack([back.whitened(row) for row in released]), fresh, rtol=0, atol=1e-11)


def test_what_is_handed_out_may_be_written_over_and_memory_keeps_its_own() -> None:
    memory, other = optimal_banded(10, 3).memory(), optimal_banded(10, 3).memory()
    ones = [torch.ones(4) for _ in range(5)]
    kept = [memory.correlated(one.clone()).clone() for one in ones]
    written = []
    for one in ones:
        handed_out = other.correlated(one)
        written.append(handed_out.clone())
        handed_out.zero_()
    assert all(torch.equal(a, b) for a, b in zip(kept, written, strict=True))


@pytest.mark.parametrize("values", [(), "1", (0.5, 0.6), (1.0, -0.1), (0.0,), (1.0, math.nan), 3, (1.0, "a")])
def test_coefficients_whose_sensitivity_is_not_known_are_refused(values: object) -> None:
    with pytest.raises(InvalidArgumentError):
        BandedStrategy(values)  # type: ignore[arg-type]


def test_equal_coefficients_are_equal_strategies_and_their_text_has_every_bit() -> None:
    strategy = optimal_banded(50, 4)
    assert BandedStrategy(strategy.values) == strategy
    text = strategy.describe().split(": ")[1]
    assert tuple(map(float.fromhex, text.split(", "))) == strategy.values


@pytest.mark.parametrize(("steps", "bands"), [(3, 4), (0, 1), (5, 0)])
def test_more_bands_than_steps_are_refused(steps: int, bands: int) -> None:
    with pytest.raises(InvalidArgumentError):
        optimal_banded(steps, bands)


@pytest.mark.slow
def test_a_strategy_for_a_million_steps_is_found() -> None:
    strategy = optimal_banded(10**6, 128)
    assert math.sqrt(strategy.mean_error(10**6)) == pytest.approx(63.3143, rel=1e-5)
