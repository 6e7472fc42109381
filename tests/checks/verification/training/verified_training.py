"""Training under `verify`, and what is claimed of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
import hushgrad.mechanism.gaussian
from hushgrad.checks.verification.verdict import Verdict
from hushgrad.clipping.flat import FlatClipping
from hushgrad.mechanism import DPSGD
from hushgrad.sampling.disjoint import DisjointBatches
from hushgrad.sampling.poisson import PoissonSampling

N, B, SIGMA, C = 400, 40, 1.1, 0.5


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 4))


def linear() -> nn.Module:
    return nn.Linear(20, 4)


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 20)), nn.Conv1d(1, 6, 3), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(108, 4)
    )


def words() -> nn.Module:
    return nn.Sequential(nn.Embedding(30, 12), nn.Flatten(), nn.Linear(240, 4))


def claim(*, poisson: bool = True, reduction: str = "mean") -> DPSGD:
    return DPSGD(
        noise_multiplier=SIGMA,
        clipping=FlatClipping(C),
        sampling=PoissonSampling(B / N) if poisson else DisjointBatches(),
        expected_batch_size=B,
        loss_reduction=reduction,
    )


def verified(model: nn.Module | None = None, mechanism: Any = None, **changes: Any) -> Verdict:
    torch.manual_seed(5)
    model = model or mlp()
    if any(isinstance(part, nn.Embedding) for part in model.modules()):
        inputs: Tensor = torch.randint(0, 30, (N, 20))
    else:
        inputs = torch.randn(N, 20, dtype=next(model.parameters()).dtype)
    loader = DataLoader(TensorDataset(inputs, torch.randint(0, 4, (N,))), batch_size=B, shuffle=True)
    arguments = {"resolution": 0.05, **changes}
    return hushgrad.verify(model, loader, nn.CrossEntropyLoss(), mechanism or claim(), **arguments)


def parts_of(verdict: Verdict) -> set[str]:
    return {check.part for check in verdict.failed}
