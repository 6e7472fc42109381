"""Operators made of others: opened, each part is captured, and the sum is exact."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_exact, assert_use_is_exact
from torch import Tensor, nn

B, T, D = 4, 3, 4


class Attention(nn.Module):
    def __init__(self, batch_first: bool, **options: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, batch_first=batch_first, **options)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.attention.batch_first else x.transpose(0, 1)
        out, weights = self.attention(h, h, h.flip(-1))
        out = out if self.attention.batch_first else out.transpose(0, 1)
        return torch.cat([out.flatten(1), weights.flatten(1)], 1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True, "bias": False}], ids=str)
def test_attention_is_exact(batch_first: bool, options: dict[str, bool]) -> None:
    assert_exact(Attention(batch_first, **options), torch.randn(B, T, D))


@pytest.mark.parametrize("slopes", [1, D])
def test_a_slope_for_all_or_for_each_channel_is_exact(slopes: int) -> None:
    assert_exact(nn.PReLU(slopes), torch.randn(B, D, T))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_that_is_called_step_by_step_is_exact(kind: type[nn.Module]) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(D, D)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for part in x.unbind(1):
                state = self.cell(part, state)
            return state[0] * state[1] if isinstance(state, tuple) else state

    assert_exact(Steps(), torch.randn(B, T, D))


def test_prelu_as_a_method_is_exact() -> None:
    assert_use_is_exact(lambda x, p: x.prelu(p), torch.randn(B, D), p=(1,))
