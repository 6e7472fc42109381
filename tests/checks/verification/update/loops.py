"""Loops of a linear model by hand, from a batch to an update, with everything in them that may be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hushgrad.checks.verification.checks.noise import NoiseReading, read_noise
from hushgrad.checks.verification.mistakes.clipping import Belief
from hushgrad.checks.verification.update.groups import GroupReading, measure
from hushgrad.checks.verification.update.paired_update import FunctionUpdate, arrays

SIGMA, C, B, ROWS = 1.3, 0.6, 16.0, 6
BELIEF = Belief(SIGMA, C, B, B)
BATCH = (
    torch.randn(ROWS, 40, generator=torch.Generator().manual_seed(3)) * torch.linspace(0.05, 2, ROWS)[:, None],
    torch.randn(ROWS, 1, generator=torch.Generator().manual_seed(4)),
)

Batch = tuple[Tensor, Tensor]
Loop = Callable[[Batch], list[Tensor]]


def gradients(batch: Batch) -> Tensor:
    """Return each example's gradient `[n, 40]` of a squared error at weights of 0."""
    x, y = batch
    return -2 * y * x


def clip(gradients_BD: Tensor, limit: float = C) -> Tensor:
    return gradients_BD * (limit / gradients_BD.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)


def noised(total: Tensor, std: float = SIGMA * C, divisor: float = B) -> list[Tensor]:
    return [(total + std * torch.randn_like(total)) / divisor]


def right(batch: Batch) -> list[Tensor]:
    return noised(clip(gradients(batch)).sum(0))


def measured(loop: Loop, belief: Belief = BELIEF) -> tuple[GroupReading, NoiseReading]:
    """Return what groups of examples are found to add, and the noise; false alarm 1e-6 each."""
    torch.manual_seed(5)
    update = FunctionUpdate(loop)
    update.find_pairing(BATCH)
    draws = []
    for _ in range(150):
        one, other = update.call(BATCH), update.call(BATCH)
        draws.append({name: (one[name] - other[name]) / math.sqrt(2) for name in one})
    noise = read_noise([arrays(draw) for draw in draws], SIGMA * C / B, 1e-6, update.word_bits)
    return measure(update, BATCH, list(range(ROWS)), belief, noise, 1e-6), noise
