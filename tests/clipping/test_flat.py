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
    torch.testing.assert_close(FlatClipping(2.0).factors(norms_B) * norms_B, torch.tensor([2.0, 2.0, 2.0]))


def test_a_norm_that_is_not_finite_gets_the_factor_zero() -> None:
    norms_B = torch.tensor([torch.nan, torch.inf, 0.0, 1.0])
    assert FlatClipping(0.5).factors(norms_B).tolist() == [0.0, 0.0, 1.0, 0.5]


def test_the_sensitivity_is_the_clip_norm() -> None:
    assert FlatClipping(3).sensitivity == 3.0


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, math.inf, True, "1.0", 1 + 2j, None, torch.ones(2)])
def test_a_clip_norm_that_is_not_a_positive_number_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="max_grad_norm: must be"):
        FlatClipping(wrong)
