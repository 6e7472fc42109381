"""Lookups in a table: exact, also with padding, or refused where one example would change another's row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attached import Attached
from oracle import assert_exact
from torch import nn

from hushgrad.errors import CrossSampleLeakError, HushgradError, SparseGradientError, UnsupportedModelError

B, T = 4, 5


@pytest.mark.parametrize("padding_idx", [None, 0, -1])
def test_rows_that_are_looked_up_twice_and_padding_rows_are_exact(padding_idx: int | None) -> None:
    model = nn.Sequential(nn.Embedding(3, 4, padding_idx=padding_idx), nn.Linear(4, 2))
    assert_exact(model, torch.randint(0, 3, (B, T)))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_norm": 1.0}, UnsupportedModelError),
        ({"scale_grad_by_freq": True}, CrossSampleLeakError),
        ({"sparse": True}, SparseGradientError),
    ],
)
def test_an_option_that_shows_other_examples_is_refused_with_its_cure(
    options: dict[str, Any], error: type[HushgradError]
) -> None:
    attached = Attached(nn.Embedding(3, 4, **options), B)
    with pytest.raises(error) as raised:
        attached.model(torch.randint(0, 3, (B, T)))
    (name,) = options
    assert raised.value.where == "embedding(weight)"
    assert raised.value.cure.startswith(f"Set {name}=")
    attached.scope.detach()
