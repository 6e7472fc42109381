"""Small trainings to be run as often as needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad.checks.verification.training.copies import TrainingReplica
from hushgrad.clipping.flat import FlatClipping
from hushgrad.mechanism import DPSGD
from hushgrad.sampling.poisson import PoissonSampling

N, B, SIGMA, C = 60, 12, 1.1, 0.5


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(N, 5, generator=generator), torch.randint(0, 3, (N,), generator=generator))


def replica(model: nn.Module | None = None, sampling: Any = None, **changes: Any) -> TrainingReplica:
    """Return a linear classifier of 60 records, to be trained at σ = 1.1 and C = 0.5."""
    torch.manual_seed(1)
    mechanism = DPSGD(
        noise_multiplier=SIGMA,
        clipping=FlatClipping(C),
        sampling=PoissonSampling(B / N) if sampling is None else sampling,
        expected_batch_size=B,
        **changes,
    )
    loader = DataLoader(data(), batch_size=B)
    return TrainingReplica.of(model or nn.Linear(5, 3), loader, nn.CrossEntropyLoss(), mechanism, sgd, None)


def flat(update: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in update.values()])
