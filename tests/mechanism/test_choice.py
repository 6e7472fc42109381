"""Which noise is better for a plan is known beforehand, from its RMSE in sums of releases at one ε."""

from __future__ import annotations

import math

import pytest

from hushgrad import DPSGD, FlatClipping, PoissonSampling, compare_noise
from hushgrad.accounting import CyclicPoisson, epsilon
from hushgrad.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("passes", "target", "bands", "ratio"),
    [(1, 1, 16, 0.437), (1, 8, 16, 0.358), (4, 2, 16, 0.557), (4, 8, 4, 0.604), (16, 1, 2, 0.982)],
)
def test_the_noise_of_sums_is_that_of_the_reference_table(passes: int, target: float, bands: int, ratio: float) -> None:
    """1,024 steps, delta 1e-6, noise by hushgrad's accountant and strategies by an optimiser of their own."""
    found = compare_noise(epsilon=target, delta=1e-6, steps=1024, rate=passes / 1024, max_bands=bands)
    (one,) = [option for option in found.correlated if option.strategy.bands == bands]
    assert one.rmse / found.independent.rmse == pytest.approx(ratio, abs=6e-4)
    assert epsilon([(CyclicPoisson(passes / 1024 * bands, one.noise_multiplier, bands, 0), 1024)], 1e-6) <= target


def test_few_passes_are_advised_half_the_noise_and_many_at_a_small_epsilon_independent_noise() -> None:
    one_pass = compare_noise(epsilon=2, delta=1e-6, steps=1024, rate=1 / 1024)
    assert one_pass.best.name == "banded"
    assert one_pass.ratio < 0.5
    assert "Correlated noise is better for this plan" in str(one_pass)
    for target in (1, 2):
        fifteen = compare_noise(epsilon=target, delta=1e-6, steps=1024, rate=15 / 1024, max_bands=8)
        assert fifteen.best.name == "gaussian"
        assert "Independent noise is better for this plan" in str(fifteen)


def test_in_fixed_order_two_buffers_are_among_the_options() -> None:
    found = compare_noise(epsilon=8, delta=1e-6, steps=400, steps_per_pass=100, max_bands=8)
    assert found.named("buffered") is found.best
    assert found.named("buffered").copies == 2
    assert found.named("gaussian").rmse > 2 * found.named("banded").rmse


def test_a_mechanism_says_its_own_error_beforehand() -> None:
    option = compare_noise(epsilon=2, delta=1e-6, steps=100, rate=0.01, max_bands=8).named("banded")
    plan = DPSGD(
        noise_multiplier=option.noise_multiplier,
        clipping=FlatClipping(0.5),
        sampling=option.sampling,
        strategy=option.strategy,
        expected_batch_size=10,
        steps=100,
    )
    assert plan.rmse == pytest.approx(0.5 * option.rmse)
    assert plan.calibrate(epsilon=2, delta=1e-6).noise_multiplier == pytest.approx(option.noise_multiplier, rel=1e-6)
    plain = DPSGD(
        noise_multiplier=2.0,
        clipping=FlatClipping(1.0),
        sampling=PoissonSampling(0.01),
        expected_batch_size=10,
        steps=9,
    )
    assert plain.rmse == pytest.approx(2 * math.sqrt(5))


@pytest.mark.parametrize(
    "plan", [{}, {"rate": 0.1, "steps_per_pass": 3}, {"rate": 2.0}, {"rate": 0.1, "steps": 0}, {"steps_per_pass": 0}]
)
def test_a_plan_that_is_none_is_refused(plan: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError):
        compare_noise(epsilon=1, delta=1e-6, **{"steps": 10, **plan})  # type: ignore[arg-type]


def test_a_kind_that_a_plan_does_not_have_is_refused() -> None:
    found = compare_noise(epsilon=1, delta=1e-5, steps=10, rate=1.0)
    assert found.best is found.independent
    for name in ("banded", "buffered"):
        with pytest.raises(InvalidArgumentError, match="for this plan"):
            found.named(name)
