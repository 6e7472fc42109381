"""Products of squared norms where float32 would lose digits that still count, and sums of many squares."""

from __future__ import annotations

import pytest
import torch

from hushgrad.gradients.rounding import BLOCK, FLOOR, TINY, Sizes, product_of_squares, squared_norms

SINGLE, DOUBLE = torch.float32, torch.float64


@pytest.mark.parametrize("is_left_huge", [True, False])
def test_a_product_beside_a_huge_square_is_infinite_also_where_the_other_one_underflowed(is_left_huge: bool) -> None:
    """Infinite squares are computed again in float64; a product with what is left of a lost square would stand."""
    huge, lost = torch.tensor([1e15, 1e9, 1.0], dtype=DOUBLE), torch.tensor([0.0, 0.0, 3.0], dtype=DOUBLE)
    operands = (huge, lost) if is_left_huge else (lost, huge)
    assert product_of_squares(*operands, (9, 9), SINGLE, FLOOR).tolist() == [torch.inf, 0.0, 3.0]


def test_a_product_below_a_tiny_floor_is_infinite_where_it_may_have_lost_digits() -> None:
    tiny = torch.tensor([1e-12, 1e-3], dtype=DOUBLE)
    found = product_of_squares(tiny, tiny, (9, 9), SINGLE, 1e-40)
    assert found.tolist() == [1e-24, 1e-6]
    fainter = product_of_squares(tiny * 1e-26, tiny, (9, 9), SINGLE, 1e-60)
    assert fainter.isinf().tolist() == [True, False]


def test_what_may_be_lost_is_the_same_share_whatever_else_is_large() -> None:
    """The sizes of terms say where the squared norm may have lost more than a millionth to underflow."""
    left, right = torch.full((2, 4), 1e-32, dtype=DOUBLE), torch.tensor([[1e3] * 4, [1e14] * 4], dtype=DOUBLE)
    norms = 16 * left[:, 0] * right[:, 0]
    assert Sizes.of(left, right, (8, 8), SINGLE).above(norms, 1e9, FLOOR).tolist() == [False, True]
    assert Sizes.of(left, right, (8, 8), DOUBLE).above(norms, 1e9, FLOOR).tolist() == [False, False]


def test_products_in_float64_stand_as_they_are() -> None:
    square = torch.tensor([1e100], dtype=DOUBLE)
    assert product_of_squares(square, square, (1, 1), DOUBLE, 0.0).tolist() == [1e200]


def test_what_is_lost_is_what_underflows_in_each_dtype() -> None:
    assert {dtype: torch.finfo(dtype).tiny for dtype in TINY} == TINY


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 5 * BLOCK + 7, 1_000_003])
@pytest.mark.parametrize("value", [1.0, 0.1, 1 / 3, None])
def test_squared_norms_of_many_values_are_those_of_float64(count: int, value: float | None) -> None:
    values = torch.randn(2, count) if value is None else torch.full((2, count), value)
    exact = values.double().square().sum(1)
    torch.testing.assert_close(squared_norms(values), exact, rtol=2e-6, atol=0)
    strided = torch.stack([values, values], 2)[:, :, 0]
    torch.testing.assert_close(squared_norms(strided), exact, rtol=2e-6, atol=0)
