"""Automatic clipping and per-sample adaptive clipping: nearly one norm for all, and never more than C."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hushgrad import AutomaticClipping, GroupwiseClipping, PerSampleAdaptiveClipping, QuantileClipping
from hushgrad.clipping.automatic import SMALLEST_GAMMA
from hushgrad.clipping.bound import BoundRule
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import InvalidArgumentError

NORMS = st.lists(st.floats(0, 1e30), min_size=1, max_size=20)
RULES: dict[str, Callable[[float, float], ClipRule]] = {
    "automatic": AutomaticClipping,
    "per-sample adaptive": PerSampleAdaptiveClipping,
}


@pytest.mark.parametrize("kind", RULES)
@given(max_grad_norm=st.floats(1e-6, 1e6), constant=st.floats(1e-4, 1e4), norms=NORMS)
def test_an_example_adds_at_most_c(kind: str, max_grad_norm: float, constant: float, norms: list[float]) -> None:
    """Guarantee: an example adds at most C to the sum, for every γ.

    Guarantee: an example adds at most C to the sum, for every r.
    """
    norms_GB = torch.tensor([norms], dtype=torch.float64)
    entered_GB = RULES[kind](max_grad_norm, constant).factors(norms_GB) * norms_GB
    assert (entered_GB <= max_grad_norm * (1 + 1e-12)).all()


def test_the_factors_are_those_of_the_papers() -> None:
    norms_GB = torch.tensor([[0.0, 0.5, 3.0, math.inf, math.nan]], dtype=torch.float64)
    automatic = AutomaticClipping(2.0, gamma=0.25).factors(norms_GB)
    assert automatic.tolist() == [[8.0, 2 / 0.75, 2 / 3.25, 0.0, 0.0]]
    adaptive = PerSampleAdaptiveClipping(2.0, r=0.25).factors(norms_GB)
    expected = [2.0, 2 / (0.5 + 0.25 / 0.75), 2 / (3 + 0.25 / 3.25), 0.0, 0.0]
    torch.testing.assert_close(adaptive, torch.tensor([expected], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rows", [1, 64, 100_000])
@pytest.mark.parametrize("rule", [AutomaticClipping(1.0, SMALLEST_GAMMA), PerSampleAdaptiveClipping(1.0, 1e-6)])
def test_a_gradient_of_norm_0_has_a_factor_within_the_limit_whatever_a_mean_was_divided_by(
    rule: ClipRule, rows: int
) -> None:
    clip, roots_GB = BoundRule(rule, ["a"]), torch.zeros(1, 3, dtype=torch.float64)
    weights_GB = clip.factors(roots_GB * rows) * rows
    assert torch.isfinite(weights_GB).all()
    assert clip.within(roots_GB, weights_GB, float(rows)).all()


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [(AutomaticClipping, "gamma", 0.0), (AutomaticClipping, "gamma", 9e-5), (PerSampleAdaptiveClipping, "r", 0)],
)
def test_a_constant_that_leaves_tiny_gradients_without_a_factor_is_refused(kind: Any, name: str, wrong: float) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name}: must be at least"):
        kind(1.0, wrong)
    with pytest.raises(InvalidArgumentError, match=f"{name}: must be a real number"):
        kind(1.0, "0.1")
    with pytest.raises(InvalidArgumentError, match="max_grad_norm: must be > 0"):
        kind(0.0)


def test_a_schedule_changes_the_norm_and_no_other_constant() -> None:
    assert AutomaticClipping(2.0, 0.5).scaled(0.5) == AutomaticClipping(1.0, 0.5)
    assert PerSampleAdaptiveClipping(2.0, 0.5).scaled(0.5) == PerSampleAdaptiveClipping(1.0, 0.5)


@pytest.mark.parametrize("kind", [AutomaticClipping, PerSampleAdaptiveClipping, GroupwiseClipping, QuantileClipping])
def test_a_class_derived_from_a_rule_of_hushgrads_is_refused(kind: Any) -> None:
    """Guarantee: a class that is derived from it is refused, so that what goes by this name is this rule."""
    with pytest.raises(InvalidArgumentError, match=r"Mine would be taken for .* clipping, in ledgers too"):
        type("Mine", (kind,), {})
