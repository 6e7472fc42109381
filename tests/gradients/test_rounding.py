"""Products of squared norms where float32 would lose digits that still count."""

from __future__ import annotations

import pytest
import torch

from hushgrad.gradients.rounding import HUGE, product_of_squares


@pytest.mark.parametrize("is_left_huge", [True, False])
def test_a_product_beside_a_huge_square_is_infinite_also_where_the_other_one_underflowed(is_left_huge: bool) -> None:
    """Infinite squares are computed again in float64; a product with what is left of a lost square would stand."""
    huge, lost = torch.tensor([2 * HUGE, HUGE, 1.0]), torch.tensor([0.0, 0.0, 3.0])
    operands = (huge, lost) if is_left_huge else (lost, huge)
    assert product_of_squares(*operands).tolist() == [torch.inf, 0.0, 3.0]


def test_what_underflows_beside_a_square_that_is_not_huge_adds_a_norm_below_1e_9() -> None:
    assert (torch.finfo(torch.float32).tiny * HUGE) ** 0.5 < 1e-9


def test_products_in_float64_stand_as_they_are() -> None:
    square = torch.tensor([1e100], dtype=torch.float64)
    assert product_of_squares(square, square).tolist() == [1e200]
