import math

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.accounting import Gaussian, PoissonSampled, epsilon
from hushgrad.accounting.composition import pooled
from hushgrad.accounting.pld.accountant import MOST_GROUPS
from hushgrad.accounting.pld.discretization import one_step


@pytest.mark.parametrize(("rate", "noise"), [(0.01, 1.0), (0.3, 0.7), (0.001, 0.4), (1.0, 1.5), (1e-6, 2.0)])
def test_one_step_agrees_with_dp_accounting(rate: float, noise: float) -> None:
    ours = one_step(rate, noise, 1e-3)
    theirs = from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=1e-3)
    points = np.array([0.0, 0.001, 0.1, 0.5, 2.0])
    np.testing.assert_allclose(
        ours.get_delta_for_epsilon(points), theirs.get_delta_for_epsilon(points), rtol=1e-6, atol=1e-14
    )


@pytest.mark.parametrize(("rate", "noise"), [(0.01, 1.0), (0.5, 0.5), (1.0, 2.0), (1e-5, 0.3), (0.1, 0.02)])
@pytest.mark.parametrize("interval", [1e-2, 1e-4])
def test_masses_are_probabilities_that_sum_to_one(rate: float, noise: float, interval: float) -> None:
    distribution = one_step(rate, noise, interval)
    for part in (distribution._pmf_remove, distribution._pmf_add):
        assert (part._probs >= 0).all()
        assert part._probs.sum() + part._infinity_mass == pytest.approx(1, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-4, 0.99), st.floats(0.3, 5), st.floats(0, 3))
def test_a_coarser_grid_never_lowers_delta(rate: float, noise: float, at: float) -> None:
    """Guarantee: an upper bound on δ(ε) at every ε."""
    fine, coarse = (one_step(rate, noise, interval).get_delta_for_epsilon(at) for interval in (0.005, 0.05))
    assert coarse >= fine * (1 - 1e-9) - 1e-15


levels = st.lists(
    st.tuples(st.floats(1e-300, 0.999), st.floats(1e-3, 1e300), st.integers(1, 10)), min_size=1, max_size=60
)


@given(levels, st.integers(1, 8))
def test_pooling_never_lowers_epsilon(sampled: list[tuple[float, float, int]], most: int) -> None:
    """Guarantee: pooling never lowers ε: every step finds a group with a larger rate and a smaller noise multiplier."""
    groups = pooled(tuple(sampled), most)
    assert len(groups) <= most
    assert sum(count for *_, count in groups) == sum(count for *_, count in sampled)
    for rate, noise, _ in sampled:
        assert any(group_rate >= rate and group_noise <= noise for group_rate, group_noise, _ in groups)


def test_few_levels_are_not_pooled() -> None:
    sampled = tuple((0.01, 1 + i / 100, 3) for i in range(MOST_GROUPS))
    assert pooled(sampled, MOST_GROUPS) is sampled


def test_splitting_a_run_into_levels_of_equal_noise_changes_nothing_that_matters() -> None:
    one = epsilon([(PoissonSampled(0.01, 1.0), 1000)], 1e-5)
    split = epsilon([(PoissonSampled(0.01, 1.0 + i * 1e-9), 200) for i in range(5)], 1e-5)
    assert split == pytest.approx(one, rel=1e-4)


def test_sampled_and_unsampled_steps_compose() -> None:
    sampled, full = (PoissonSampled(0.02, 1.0), 500), (Gaussian(2.0), 1)
    together = epsilon([sampled, full], 1e-5)
    assert max(epsilon([sampled], 1e-5), epsilon([full], 1e-5)) < together
    assert together < epsilon([sampled], 5e-6) + epsilon([full], 5e-6)


def test_an_epsilon_near_the_overflow_of_exp_is_finite_and_no_more_than_without_sampling() -> None:
    for noise, steps in [(0.01, 1000), (0.05, 30), (0.3, 500), (1e-3, 10**7)]:
        value = epsilon([(PoissonSampled(0.5, noise), steps)], 0.5)
        assert 300 < value <= epsilon([(Gaussian(noise), steps)], 0.5) < math.inf


def test_a_record_that_is_almost_never_drawn_costs_nothing() -> None:
    assert epsilon([(PoissonSampled(1e-12, 0.5), 1000)], 1e-8) == 0
    assert math.isfinite(epsilon([(PoissonSampled(1e-12, 1e-3), 10**6)], 1e-8))
