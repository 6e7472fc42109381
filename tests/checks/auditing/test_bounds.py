"""Lower bounds on ε: below the truth as often as they say, close to it, and above a claim that is false."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq

from hushgrad.accounting.gaussian import gaussian_epsilon
from hushgrad.checks.auditing.audit import guess
from hushgrad.checks.auditing.bounds import one_run_bound, one_run_gaussian_bound, white_box_bound
from hushgrad.errors import InvalidArgumentError

DELTA = 1e-5


def mu_of(epsilon: float) -> float:
    return float(brentq(lambda mu: gaussian_epsilon(mu * mu, DELTA) - epsilon, 1e-3, 20))


@pytest.mark.statistical
@pytest.mark.parametrize(("epsilon", "count"), [(1.0, 50_000), (4.0, 10_000), (8.0, 10_000)])
def test_the_white_box_bound_is_below_the_truth_and_close_to_it(epsilon: float, count: int) -> None:
    """Guarantee: for a Gaussian mechanism the bound is at most the true ε with probability `confidence`.

    At 0.99 in each of 300 runs: more than 15 above the truth have a probability below 1e-6.
    """
    source, mu = np.random.default_rng(8), mu_of(epsilon)
    found = np.array(
        [
            white_box_bound(source.normal(mu, 1, count), source.normal(0, 1, count), delta=DELTA).epsilon
            for _ in range(300)
        ]
    )
    assert (found <= epsilon).mean() >= 0.95
    assert (found >= 0.85 * epsilon).mean() >= 0.95


@pytest.mark.statistical
@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0])
def test_a_claim_is_rejected_when_half_the_noise_is_missing(epsilon: float) -> None:
    source, mu = np.random.default_rng(9), mu_of(epsilon)
    bound = white_box_bound(source.normal(2 * mu, 1, 5000), source.normal(0, 1, 5000), delta=DELTA)
    assert bound.rejects(epsilon)
    assert not bound.rejects(gaussian_epsilon(4 * mu * mu, DELTA))


@pytest.mark.statistical
def test_few_scores_give_valid_bounds_too() -> None:
    """The t distribution at 3 + 3 scores: at most 1% above the truth; more than 45 of 2000 have probability < 1e-6."""
    source, mu = np.random.default_rng(10), 1.5
    truth = gaussian_epsilon(mu * mu, DELTA)
    above = sum(
        white_box_bound(source.normal(mu, 1, 3), source.normal(0, 1, 3), delta=DELTA).epsilon > truth
        for _ in range(2000)
    )
    assert above <= 45


@pytest.mark.statistical
@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_one_run_bounds_are_below_the_truth_and_f_dp_is_the_closer_one(mu: float) -> None:
    source = np.random.default_rng(11)
    truth = gaussian_epsilon(mu * mu, DELTA)
    for _ in range(40):
        members = source.random(1000) < 0.5
        right, made = guess(source.normal(0, 1, 1000) + mu * members, members, 200)
        plain = one_run_bound(made, right, 1000, delta=DELTA).epsilon
        sharp = one_run_gaussian_bound(made, right, 1000, delta=DELTA).epsilon
        assert plain <= truth
        assert sharp <= truth
        assert plain <= sharp


def test_the_one_run_bound_has_its_published_value() -> None:
    """All of 100 guesses right, δ = 0 in the limit: the ε with q¹⁰⁰ = 0.05, q = e^ε/(1 + e^ε)."""
    q = 0.05 ** (1 / 100)
    bound = one_run_bound(100, 100, 100, delta=1e-12, confidence=0.95)
    assert bound.epsilon == pytest.approx(math.log(q / (1 - q)), abs=1e-6)


def test_no_information_gives_a_bound_of_zero() -> None:
    assert one_run_bound(100, 50, 100, delta=DELTA).epsilon == 0
    assert one_run_gaussian_bound(100, 50, 100, delta=DELTA).epsilon == 0
    assert white_box_bound(np.array([0.0, 1.0]), np.array([0.0, 1.0]), delta=DELTA).epsilon == 0


def test_scores_without_noise_give_infinity() -> None:
    assert math.isinf(white_box_bound(np.ones(3), np.zeros(3), delta=DELTA).epsilon)


@pytest.mark.parametrize(
    "call",
    [
        lambda: one_run_bound(10, 11, 20, delta=DELTA),
        lambda: one_run_gaussian_bound(30, 11, 20, delta=DELTA),
        lambda: one_run_bound(10, 5, 20, delta=0),
        lambda: one_run_bound(10, 5, 20, delta=DELTA, confidence=0.2),
        lambda: white_box_bound(np.ones(1), np.ones(5), delta=DELTA),
        lambda: white_box_bound(np.array([1.0, math.nan]), np.ones(5), delta=DELTA),
        lambda: guess(np.ones(5), np.ones(4, dtype=bool), 2),
    ],
)
def test_bad_arguments_are_typed_errors(call: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        call()
