"""Formulas of wrong noise levels are told apart, by the code of their mistake."""

from __future__ import annotations

import pytest

from hushgrad.checks.verification.mistakes.clipping import Belief
from hushgrad.checks.verification.mistakes.noise import NOISE_SCALE_MISTAKES, level_causes

BELIEF = Belief(noise_multiplier=1.3, max_grad_norm=0.6, expected_batch_size=50.0, divisor=50.0)
COUNTS = (1, 48, 96)


@pytest.mark.parametrize("place", range(len(NOISE_SCALE_MISTAKES)))
def test_every_known_level_is_explained_by_its_own_mistake(place: int) -> None:
    level = NOISE_SCALE_MISTAKES[place]
    cause = level_causes(BELIEF, {count: level.std(BELIEF, count) for count in COUNTS})
    assert cause is not None
    assert cause.code == level.cause.code


def test_the_right_level_has_no_cause_and_an_unknown_one_says_its_factor() -> None:
    right = BELIEF.noise_multiplier * BELIEF.max_grad_norm
    assert level_causes(BELIEF, dict.fromkeys(COUNTS, right)) is None
    unknown = level_causes(BELIEF, dict.fromkeys(COUNTS, 1.2345 * right))
    assert unknown is not None
    assert (unknown.code, "1.234" in unknown.mistake) == ("noise-level", True)
    varying = level_causes(BELIEF, {1: right, 48: 1.5 * right, 96: 3.1 * right})
    assert varying is not None
    assert varying.code == "noise-depends-on-data"
