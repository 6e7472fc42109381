"""A zoo of samplers that are charged as Poisson sampling and are not: all found, and the mistake is named."""

from __future__ import annotations

import itertools

import numpy as np
import planted_samplers as zoo
import pytest

from hushgrad.checks.verification.checks.sampling import draws_needed, read_sampling


@pytest.mark.statistical
@pytest.mark.parametrize("name", zoo.PLANTED)
def test_a_planted_sampler_is_detected_and_named(name: str) -> None:
    """Seeds are fixed; a bug would be missed with a probability below 1e-3."""
    sampler, codes, population = zoo.PLANTED[name]
    steps = zoo.STEPS if name != "one_percent_more" else draws_needed(population, zoo.Q, 0.01, 1e-6)
    draws = list(itertools.islice(sampler(np.random.default_rng(11)), steps))
    reading = read_sampling(draws, population=population, rate=zoo.Q, false_alarm=1e-6)
    assert not all(check.passed for check in reading.checks.values())
    assert reading.causes[0].code in codes, {n: (c.passed, c.measured) for n, c in reading.checks.items()}


@pytest.mark.statistical
def test_p_values_of_true_poisson_draws_are_not_too_small() -> None:
    """Of 300 × 6 p-values below 1e-3 at most 8 are expected; 15 or more have a probability below 1e-7."""
    small = 0
    for seed in range(300):
        draws = list(itertools.islice(zoo.poisson(np.random.default_rng(seed)), 200))
        reading = read_sampling(draws, population=zoo.N, rate=zoo.Q, false_alarm=1e-6)
        small += sum(check.p_value is not None and check.p_value < 1e-3 for check in reading.checks.values())
    assert small < 15
