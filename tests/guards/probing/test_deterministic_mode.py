"""A forward without randomness: dropout keeps everything, draws are their mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hushgrad.guards.probing.deterministic_mode import DeterministicMode


def test_random_operators_give_constants() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with DeterministicMode():
        assert torch.equal(F.dropout(x, 0.5, training=True), 2 * x)  # scaled as in training, and nothing is dropped
        assert torch.equal(torch.randn(5), torch.zeros(5))
        assert float(torch.rand(5).std()) == 0
    assert not torch.equal(torch.randn(5), torch.zeros(5))
