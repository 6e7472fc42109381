"""The one place where the noise that runs and the noise that is charged are the same number."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushgrad import DPSGD, DisjointBatches, FlatClipping, PoissonSampling
from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.errors import InvalidArgumentError, UnreachableTargetError

POISSON = DPSGD(
    noise_multiplier=1.1,
    clipping=FlatClipping(0.5),
    sampling=PoissonSampling(0.01),
    expected_batch_size=500,
    steps=2000,
)
DISJOINT = replace(POISSON, sampling=DisjointBatches(), steps=None, passes=3)

numbers = st.floats(1e-3, 1e3)


@given(sigma=numbers, norm=numbers, size=numbers, reduction=st.sampled_from(["mean", "sum"]))
def test_the_charge_is_sigma_and_the_noise_sigma_times_c_whatever_the_batch_size(
    sigma: float, norm: float, size: float, reduction: str
) -> None:
    """Guarantee: the noise on the sum has standard deviation `noise_multiplier · sensitivity`, and the accountant is
    given `noise_multiplier`, never one scaled by a batch size."""
    for sampling in (PoissonSampling(0.1), DisjointBatches()):
        mechanism = DPSGD(
            noise_multiplier=sigma,
            clipping=FlatClipping(norm),
            sampling=sampling,
            expected_batch_size=size,
            loss_reduction=reduction,
        )
        assert mechanism.noise_std == sigma * norm
        assert mechanism.divisor == (size if reduction == "mean" else 1.0)
        assert mechanism.event().noise_multiplier == sigma


def test_a_step_is_charged_as_what_the_sampling_makes_of_it() -> None:
    assert POISSON.event() == POISSON.event(7) == PoissonSampled(0.01, 1.1)
    assert DISJOINT.event(2) == DisjointPass(1.1, 2)


def test_the_planned_epsilon_is_that_of_all_steps_or_passes() -> None:
    assert POISSON.epsilon(1e-5) == epsilon([(PoissonSampled(0.01, 1.1), 2000)], 1e-5)
    assert DISJOINT.epsilon(1e-5) == epsilon([(DisjointPass(1.1, i), 1) for i in range(3)], 1e-5)
    assert replace(POISSON, noise_multiplier=0).epsilon(1e-5) == float("inf")


@pytest.mark.parametrize("mechanism", [POISSON, DISJOINT], ids=["poisson", "disjoint"])
def test_calibration_returns_a_new_mechanism_that_spends_the_target(mechanism: DPSGD) -> None:
    calibrated = mechanism.calibrate(epsilon=3.0, delta=1e-5)
    assert calibrated.epsilon(1e-5) <= 3.0
    assert calibrated.epsilon(1e-5) == pytest.approx(3.0, rel=1e-3)
    assert replace(calibrated, noise_multiplier=1.1) == mechanism
    assert mechanism.noise_multiplier == 1.1


def test_an_unreachable_target_is_refused() -> None:
    with pytest.raises(UnreachableTargetError):
        replace(DISJOINT, passes=1).calibrate(epsilon=1e-9, delta=1e-12)


def test_what_is_not_planned_cannot_be_calibrated() -> None:
    for mechanism, name in ((replace(POISSON, steps=None), "steps"), (replace(DISJOINT, passes=None), "passes")):
        for ask in (
            lambda mechanism=mechanism: mechanism.epsilon(1e-5),
            lambda mechanism=mechanism: mechanism.calibrate(epsilon=1.0, delta=1e-5),
        ):
            with pytest.raises(InvalidArgumentError, match=name):
                ask()


def test_a_mechanism_is_a_frozen_value() -> None:
    with pytest.raises(FrozenInstanceError):
        POISSON.noise_multiplier = 0.1  # type: ignore[misc]
    assert replace(POISSON) == POISSON
    assert hash(POISSON) == hash(replace(POISSON))
    assert isinstance(replace(POISSON, noise_multiplier=2).noise_multiplier, float)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_multiplier", -0.1),
        ("noise_multiplier", float("nan")),
        ("noise_multiplier", float("inf")),
        ("noise_multiplier", True),
        ("noise_multiplier", "1"),
        ("clipping", 1.0),
        ("sampling", 0.01),
        ("expected_batch_size", 0),
        ("expected_batch_size", float("inf")),
        ("steps", 0),
        ("steps", 2.0),
        ("passes", 1),
        ("loss_reduction", "none"),
    ],
)
def test_fields_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=field):
        replace(POISSON, **{field: value})
