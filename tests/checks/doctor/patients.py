"""A model of which there is much to tell, and batches for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from leaky_models import BATCH, WIDTH
from torch import Tensor, nn


class Patient(nn.Module):
    """A model with dropout, a buffer, a frozen and an unused part, a tied weight, and two calls of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, WIDTH)
        self.twice = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.3)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        h = self.tokens(ids).mean(1)
        h = self.dropout(self.twice(self.twice(h).tanh())) * self.scale
        return F.linear(self.frozen(h), self.tokens.weight)


def ids() -> Tensor:
    return torch.randint(0, 11, (4, 5))


def features() -> Tensor:
    return torch.randn(BATCH, WIDTH)
