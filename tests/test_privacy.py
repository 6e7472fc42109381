"""What a framework's user says about privacy: the clip rule in it."""

from __future__ import annotations

from typing import Any

import pytest

from hushgrad import AutomaticClipping, ClipRule, FlatClipping, GroupwiseClipping, Privacy, QuantileClipping
from hushgrad.errors import InvalidArgumentError


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
