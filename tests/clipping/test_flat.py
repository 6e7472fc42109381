"""The flat clip rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import InvalidArgumentError


@given(
    max_grad_norm=st.floats(1e-6, 1e6),
    norms=st.lists(st.floats(0, 1e30), min_size=1, max_size=20),
)
def test_no_example_enters_the_sum_with_more_than_the_clip_norm(max_grad_norm: float, norms: list[float]) -> None:
    norms_B = torch.tensor(norms, dtype=torch.float64)
    entered_B = FlatClipping(max_grad_norm).factors(norms_B) * norms_B
    assert (entered_B <= max_grad_norm * (1 + 1e-12)).all()


@given(max_grad_norm=st.floats(1e-6, 1e6), share=st.floats(0, 1))
def test_an_example_within_the_clip_norm_is_left_as_it_is(max_grad_norm: float, share: float) -> None:
    norms_B = torch.tensor([max_grad_norm * share], dtype=torch.float64)
    assert FlatClipping(max_grad_norm).factors(norms_B).item() == 1.0


def test_an_example_beyond_the_clip_norm_is_scaled_onto_it() -> None:
    norms_B = torch.tensor([2.0, 8.0, 1e20])
    torch.testing.assert_close(FlatClipping(2.0).factors(norms_B) * norms_B, torch.tensor([2.0] * 3).double())


def test_a_norm_that_is_not_finite_gets_the_factor_zero() -> None:
    norms_B = torch.tensor([torch.nan, torch.inf, 0.0, 1.0])
    assert FlatClipping(0.5).factors(norms_B).tolist() == [0.0, 0.0, 1.0, 0.5]


def test_the_sensitivity_is_the_clip_norm() -> None:
    assert FlatClipping(3).sensitivity == 3.0


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, math.inf, True, "1.0", 1 + 2j, None, torch.ones(2)])
def test_a_clip_norm_that_is_not_a_positive_number_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="max_grad_norm: must be"):
        FlatClipping(wrong)


@pytest.mark.parametrize("tiny", [1e-21, 1e-30, 1e-45, 5e-324])
def test_a_clip_norm_that_float32_cannot_hold_is_refused_with_a_cure(tiny: float) -> None:
    with pytest.raises(InvalidArgumentError, match=r"at least 1e-20, got .* Multiply the losses by a constant"):
        FlatClipping(tiny)
    with pytest.raises(InvalidArgumentError, match="at least 1e-20"):
        FlatClipping(1.0).scaled(tiny)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_factors_of_norms_in_any_dtype_are_within_the_clip_norm(dtype: torch.dtype) -> None:
    norms_B = torch.linspace(0.1, 9, 1000).to(dtype)
    for limit in (0.3, 1 / 3, 2.0):
        assert (FlatClipping(limit).factors(norms_B) * norms_B.double() <= limit * (1 + 1e-12)).all()


def test_a_class_that_is_derived_from_it_is_refused() -> None:
    """Guarantee: a class that is derived from it is refused, so that what goes by this name is this rule."""
    with pytest.raises(InvalidArgumentError, match=r"Mine would be taken for flat clipping.*hushgrad\.ClipRule"):
        type("Mine", (FlatClipping,), {})


def test_a_scaled_rule_has_the_limit_times_the_factor() -> None:
    assert FlatClipping(0.3).scaled(0.1) == FlatClipping(0.3 * 0.1)


def test_the_text_that_ledgers_hold_never_changes() -> None:
    assert FlatClipping(1).describe() == "FlatClipping(max_grad_norm=1.0)"
    assert FlatClipping(0.1 + 0.2).describe() == "FlatClipping(max_grad_norm=0.30000000000000004)"


def test_the_reference_is_the_sum_of_clipped_gradients_one_by_one() -> None:
    per_example = {
        "w": torch.randn(5, 2, 3).double(),
        "b": torch.randn(5).double() * 10,
        "zero": torch.zeros(5, 1).double(),
    }
    per_example["w"][2], per_example["b"][2] = 0.0, 0.0
    found = FlatClipping(2.0).reference(per_example)
    for name, gradients in per_example.items():
        expected = torch.zeros_like(gradients[0])
        for place, gradient in enumerate(gradients):
            norm = math.sqrt(sum(float(values[place].square().sum()) for values in per_example.values()))
            expected += gradient * min(1.0, 2.0 / norm if norm else 1.0)
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12)
