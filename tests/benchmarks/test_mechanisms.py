"""The pieces of `python -m benchmarks.mechanisms`: the plan of its ε, and sessions that take steps."""

from __future__ import annotations

import pytest
from benchmarks.mechanisms import (
    NOISES,
    PASS,
    RULES,
    B,
    N,
    draw_ms,
    drawing,
    epsilons,
    samplings,
    stepping,
    whole_users,
)

from hushgrad import FlatClipping, GaussianNoise
from hushgrad.mechanism import known as known_noises
from hushgrad.sampling import known as known_samplings


def test_every_sampling_and_noise_has_its_line() -> None:
    assert {type(scheme) for scheme in samplings(PASS, N).values()} == set(known_samplings.OWN)
    assert {type(noise) for noise in NOISES.values()} | {GaussianNoise} == set(known_noises.OWN)


def test_epsilon_is_that_of_whole_passes() -> None:
    schemes = samplings(PASS, N)
    assert epsilons(schemes["disjoint"]) == pytest.approx(epsilons(schemes["fixed order"]), rel=1e-6)
    assert epsilons(schemes["balls-in-bins"])[0] == pytest.approx(0.6216, rel=1e-3)  # docs/accounting.md


def test_steps_and_draws_are_timed() -> None:
    step = stepping(RULES["quantile"], GaussianNoise(1.0))
    assert step() > 0
    assert stepping(FlatClipping(1.0), NOISES["buffered"])() > 0
    assert drawing(whole_users(1.0, B))() > 0
    drawn = {name: draw_ms(scheme) for name, scheme in samplings(234, N).items()}
    assert {name for name, took in drawn.items() if took is None} == {"disjoint", "fixed order"}
