"""What a framework's user says about privacy: the clip rule and the sampling in it."""

from __future__ import annotations

from typing import Any

import pytest

from hushgrad import AutomaticClipping, ClipRule, FlatClipping, GroupwiseClipping, Privacy, QuantileClipping
from hushgrad.accounting import epsilon
from hushgrad.errors import InvalidArgumentError
from hushgrad.sampling.balls_in_bins import BallsInBinsSampling
from hushgrad.sampling.choice import NAMES
from hushgrad.sampling.fixed_size import FixedSizeSampling
from hushgrad.sampling.poisson import PoissonSampling
from hushgrad.strategies.optimal_banded import optimal_banded


@pytest.mark.parametrize(
    ("said", "rule"),
    [
        ({"max_grad_norm": 0.5}, FlatClipping(0.5)),
        ({"max_grad_norm": 0.5, "clipping": "automatic:gamma=0.1"}, AutomaticClipping(0.5, 0.1)),
        ({"max_grad_norm": 0.5, "clipping": "quantile"}, QuantileClipping(0.5, count_noise_multiplier=20.0)),
        ({"clipping": GroupwiseClipping(0.5)}, GroupwiseClipping(0.5)),
    ],
)
def test_the_clip_rule_is_the_one_that_is_named_or_given(said: dict[str, Any], rule: ClipRule) -> None:
    privacy = Privacy(target_delta=1e-5, target_epsilon=2.0, **said)
    mechanism = privacy.mechanism(batch_size=400, population=10_000, steps=50)
    assert mechanism.clipping == rule
    assert mechanism.epsilon(1e-5) <= 2.0


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({}, "max_grad_norm: must be a real number, got NoneType"),
        ({"max_grad_norm": 1.0, "clipping": "adaptive"}, "clipping: must be one of"),
        ({"max_grad_norm": 1.0, "clipping": GroupwiseClipping(0.5)}, "Leave max_grad_norm out"),
        ({"max_grad_norm": 1.0, "clipping": 1.0}, "must be a clip rule"),
    ],
)
def test_what_names_no_rule_is_refused_when_it_is_said(said: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        Privacy(target_delta=1e-5, noise_multiplier=1.0, **said)


def test_the_noise_holds_for_as_many_records_as_are_asked_for() -> None:
    privacy = Privacy(max_grad_norm=1.0, target_delta=1e-5, target_epsilon=2.0, group_size=4)
    mechanism = privacy.mechanism(batch_size=400, population=10_000, steps=50)
    assert 1.99 < mechanism.epsilon(1e-5, group_size=4) <= 2.0
    assert mechanism.epsilon(1e-5) < 0.5
    with pytest.raises(InvalidArgumentError):
        Privacy(max_grad_norm=1.0, target_delta=1e-5, target_epsilon=2.0, group_size=0)


# Sampling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sampling", "size"),
    [
        ("poisson", PoissonSampling(400 / 9_900), 400),
        ("balls-in-bins", BallsInBinsSampling(25), 396),
        ("fixed-size", FixedSizeSampling(400, 9_900), 400),
    ],
)
def test_sampling_by_name_is_planned_and_calibrated_as_what_it_is(name: str, sampling: Any, size: float) -> None:
    privacy = Privacy(max_grad_norm=1.0, target_delta=1e-5, target_epsilon=2.0, sampling=name)
    mechanism = privacy.mechanism(batch_size=400, population=9_900, steps=60, steps_per_pass=25)
    assert mechanism.sampling == sampling
    assert mechanism.expected_batch_size == size
    assert mechanism.passes == (3 if name == "balls-in-bins" else None)
    planned = [(sampling.event(mechanism.noise_multiplier, index), 1) for index in range(3)]
    if mechanism.passes is None:
        planned = [(sampling.event(mechanism.noise_multiplier), 60)]
    assert 1.99 < mechanism.epsilon(1e-5) == epsilon(planned, 1e-5) <= 2.0


def test_each_name_of_a_sampling_is_among_those_of_the_test_above() -> None:
    assert set(NAMES) == {"poisson", "balls-in-bins", "fixed-size"}


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"sampling": "shuffled"}, "sampling: must be one of"),
        ({"sampling": PoissonSampling(0.1)}, "make_private"),
        ({"sampling": "balls-in-bins", "spare_steps": 2}, "Plan one epoch more"),
        ({"noise": "banded"}, "make_private_with_epsilon"),
        ({"noise": optimal_banded(4, 2)}, "make_private_with_epsilon"),
        ({"noise": "pink"}, "noise: must be one of"),
        ({"sparse_rows": ("users.weight",)}, "sparse_rows: must be a SparseRows"),
    ],
)
def test_what_the_loops_of_frameworks_do_not_follow_is_refused_when_it_is_said(
    said: dict[str, Any], match: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        Privacy(max_grad_norm=1.0, target_delta=1e-5, noise_multiplier=1.0, **said)
