"""Losses of which one example's depends on another's, each as people write it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def per_class(losses: Tensor, y: Tensor) -> Tensor:
    counts = torch.bincount(y, minlength=3).float()
    return losses * (1 / counts.clamp(min=1))[y]


def contrastive(out: Tensor, y: Tensor) -> Tensor:
    features = F.normalize(out, dim=1)
    return F.cross_entropy(features @ features.T / 0.1, torch.arange(len(out)), reduction="none")


def triplets(out: Tensor, y: Tensor) -> Tensor:
    distances = torch.cdist(out, out)
    same = y[:, None] == y[None]
    return (distances.masked_fill(~same, 0).amax(1) - distances.masked_fill(same, 1e3).amin(1) + 1).relu()


def hard_examples(out: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(out, y, reduction="none")
    return losses * (losses >= losses.topk(max(1, len(losses) // 2)).values[-1])


def smoothed_by_the_batch(out: Tensor, y: Tensor) -> Tensor:
    prior = torch.bincount(y, minlength=3).float() / len(y)
    target = 0.9 * F.one_hot(y, 3) + 0.1 * prior
    return -(target * out.log_softmax(1)).sum(1)


def normalised_focal(out: Tensor, y: Tensor) -> Tensor:
    chance = out.softmax(1).gather(1, y[:, None]).squeeze(1)
    weight = (1 - chance) ** 2
    return -weight * chance.log() / weight.sum()


def variance_term(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="none") + (1 - out.std(0)).relu().mean()


def redundancy(out: Tensor, y: Tensor) -> Tensor:
    z = (out - out.mean(0)) / (out.std(0) + 1e-3)
    return F.cross_entropy(out, y, reduction="none") + (z.T @ z / len(z) - torch.eye(3)).square().sum()


def marginal_entropy(out: Tensor, y: Tensor) -> Tensor:
    mean = out.softmax(1).mean(0)
    return F.cross_entropy(out, y, reduction="none") + (mean * mean.log()).sum()


def ranking(out: Tensor, y: Tensor) -> Tensor:
    score = out[:, 0]
    return (1 - (score[:, None] - score[None]) * (y[:, None] - y[None]).sign()).relu().mean(1)


def dice_of_the_batch(out: Tensor, y: Tensor) -> Tensor:
    chance, target = out.softmax(1), F.one_hot(y, 3)
    return (1 - 2 * (chance * target).sum() / (chance.sum() + target.sum())).expand(len(y)) * 1.0


def scaled_by_the_mean(out: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(out, y, reduction="none")
    return losses / losses.detach().mean()


def straight_through(out: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(out, y, reduction="none")
    return losses + (losses.mean() - losses.mean().detach())


def broadcast(out: Tensor, y: Tensor) -> Tensor:
    return (out[:, :1] - y.float()).square().mean(1)


def spread(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y).expand(len(y)) * 1.0


def shuffled_targets(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y.flip(0), reduction="none")


def adversarial_pairs(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out - out[torch.randperm(len(out))], y, reduction="none")


class MovingScale:
    """Divides by a moving mean of the loss that it keeps."""

    def __init__(self) -> None:
        self.mean = 1.0

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(out, y, reduction="none")
        self.mean = 0.5 * self.mean + 0.5 * float(losses.detach().mean())
        return losses / self.mean


class CentreLoss(nn.Module):
    """Keeps the centres of the classes in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(3, 3))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        losses = (out - self.centres[y].clone()).square().mean(1)
        with torch.no_grad():
            self.centres[y] += 0.1 * (out - self.centres[y])
        return losses


CRITERIA: list[tuple[str, Callable[[], Loss]]] = [
    ("class weights of the batch", lambda: lambda out, y: per_class(F.cross_entropy(out, y, reduction="none"), y)),
    ("divided by the number in the batch", lambda: lambda out, y: F.cross_entropy(out, y, reduction="none") / len(y)),
    ("divided by those that count",
     lambda: lambda out, y: F.cross_entropy(out, y, reduction="none") * (y > 0) / (y > 0).sum().clamp(min=1)),
    ("in-batch negatives", lambda: contrastive),
    ("triplet mining", lambda: triplets),
    ("hard example mining", lambda: hard_examples),
    ("label smoothing by the batch", lambda: smoothed_by_the_batch),
    ("focal loss normalised over the batch", lambda: normalised_focal),
    ("variance of the batch", lambda: variance_term),
    ("redundancy over the batch", lambda: redundancy),
    ("entropy of the batch's mean", lambda: marginal_entropy),
    ("pairwise ranking", lambda: ranking),
    ("dice over the batch", lambda: dice_of_the_batch),
    ("scaled by the batch's mean", lambda: scaled_by_the_mean),
    ("straight through the batch's mean", lambda: straight_through),
    ("[B, 1] against [B]", lambda: broadcast),
    ("the mean for everyone", lambda: spread),
    ("targets of other examples", lambda: shuffled_targets),
    ("random pairs", lambda: adversarial_pairs),
    ("a moving scale", MovingScale),
    ("moving centres", CentreLoss),
]  # fmt: skip
