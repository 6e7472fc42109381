"""One call run again, on slices or behind masks: each example's gradient is its own, and a broken one stays there."""

from __future__ import annotations

import torch
from attached import Attached, B, Model, losses
from torch import Tensor, nn


def test_a_broken_example_in_the_fallback_by_masks_reaches_no_other_example() -> None:
    """A recurrent layer with dropout cannot be run on slices; NaN in one example must stay there."""
    torch.manual_seed(3)
    model = Model(
        lambda m, x: m.head(m.layer(x)[0]), layer=nn.LSTM(4, 3, 2, batch_first=True, dropout=0.4), head=nn.Linear(3, 2)
    )
    attached = Attached(model)
    x = torch.randn(B, 6, 4)
    sums = []
    for value in (1.0, torch.nan):
        x[2, 3, 1] = value
        torch.manual_seed(4)  # the same dropout
        out = losses(model(x))
        keep = torch.ones(B)
        keep[2] = 0.0 if value == 1.0 else 1.0
        (out * keep).sum().backward()
        sums.append(attached.sums())
    assert_close_float32(*sums)
    assert any(value.abs().max() > 0 for value in sums[0].values())
    attached.scope.detach()


def assert_close_float32(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6)
