"""Padding rows: cut off as views, so that they contribute exactly 0."""

from __future__ import annotations

import pytest
import torch

from hushgrad.errors import PrivacyUnitError
from hushgrad.gradients.dense import Dense
from hushgrad.session.padding import without_padding


def test_uses_of_another_number_of_examples_than_rows_are_refused() -> None:
    uses = {"weight": [Dense(torch.ones(4, 2))]}
    assert without_padding(uses, 4, 4) is uses
    assert without_padding(uses, 1, 4)["weight"][0].per_example().shape == (1, 2)
    with pytest.raises(PrivacyUnitError, match="weight: saw 4 examples in an item of 5 rows"):
        without_padding(uses, 3, 5)
