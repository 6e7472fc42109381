"""Padding rows: cut off as views, so that they contribute exactly 0."""

from __future__ import annotations

import pytest
import torch

from hushgrad.errors import PrivacyUnitError
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.outer import OuterProducts
from hushgrad.session.padding import without_padding


def test_uses_of_another_number_of_examples_than_rows_are_refused() -> None:
    uses = {"weight": [Dense(torch.ones(4, 2))]}
    assert without_padding(uses, 4, 4) is uses
    assert without_padding(uses, 1, 4)["weight"][0].per_example().shape == (1, 2)
    with pytest.raises(PrivacyUnitError, match="weight: saw 4 examples in an item of 5 rows"):
        without_padding(uses, 3, 5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e38])
def test_padding_rows_are_never_read(poison: float) -> None:
    """Guarantee: padding rows contribute exactly 0, whatever they hold."""
    left, right = torch.randn(5, 2, 3), torch.randn(5, 2, 4)
    expected = OuterProducts(left[:3].clone(), right[:3].clone()).weighted_sum(torch.ones(3))
    left[3:], right[3:] = poison, poison
    (cut,) = without_padding({"weight": [OuterProducts(left, right)]}, 3, 5)["weight"]
    assert torch.equal(cut.weighted_sum(torch.ones(3)), expected)


def test_padding_is_cut_off_without_a_copy() -> None:
    held = torch.ones(4, 2)
    (cut,) = without_padding({"weight": [Dense(held)]}, 3, 4)["weight"]
    assert cut.operands[0].data_ptr() == held.data_ptr()


def test_an_empty_draw_leaves_no_row() -> None:
    (cut,) = without_padding({"weight": [Dense(torch.ones(4, 2))]}, 0, 4)["weight"]
    assert cut.batch_size == 0
