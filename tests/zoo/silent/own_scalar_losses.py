"""Scalar losses of the loop's own in which records meet, as people write them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from silent_programs import Kind, Program, clean, leaky, linear, removed, replaced
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

COUNT, CLASSES = 16, 3
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(COUNT, 4, generator=GENERATOR)
Y = torch.arange(COUNT) % CLASSES
FAR = replaced(list(zip(X, Y, strict=True)), -1, (torch.full((4,), 30.0), Y[-1]))
GONE = removed([*[*zip(X, Y, strict=True)][:-1], (torch.full((4,), 30.0), Y[-1])])
HARD = 1
"""The class that a fresh network thinks least likely for a record far off."""


def even(label: int) -> dict[str, Any]:
    """Equal records, and one far off with a large loss, which is removed."""
    return removed([(X[0], torch.tensor(label))] * (COUNT - 1) + [(torch.full((4,), 30.0), torch.tensor(HARD))])


LAST_IS_HARD = removed([*[*zip(X, Y, strict=True)][:-1], (torch.full((4,), 30.0), torch.tensor(HARD))])
ONE = removed([(x, torch.tensor(0)) for x in X[:-1]] + [(torch.full((4,), 30.0), torch.tensor(1))])
HUGE_TARGET = removed([*[*zip(X, Y, strict=True)][:-1], (X[-1], torch.tensor(1000))])
MIDDLE = replaced(list(zip(X, Y, strict=True)), 7, (X[7], (Y[7] + 1) % CLASSES))
RARE = removed(list(zip(X, torch.tensor([0] * (COUNT - 1) + [1]), strict=True)))

SHORT = torch.tensor([3, 4, 5, 6])
LENGTHS = removed([SHORT] * 9 + [torch.arange(31) % 10 + 1])

TRUST = ("own scalar loss",)
"""Allowed where a factor or a target was computed from values alone: docs/probe.md, "What the graph does not show"."""


def pairs(records: Any) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in records]), torch.stack([y for _, y in records])


def padded(records: Any) -> Tensor:
    return pad_sequence(list(records), batch_first=True)


def mlp(out: int = CLASSES) -> Any:
    return lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, out))


def of_pairs(loss: Any, out: int = CLASSES, clip: float = 0.05, **more: Any) -> dict[str, Any]:
    return {
        "make": mlp(out),
        "call": lambda model, batch: model(batch[0]),
        "targets": lambda batch: batch[1],
        "collate": pairs,
        "scalar": loss,
        "ways": ("scalar",),
        "clip": clip,
        **more,
    }


def of_tokens(loss: Any, clip: float = 0.8) -> dict[str, Any]:
    return {
        "make": lambda: nn.Embedding(11, 11),
        "call": lambda model, ids: model(ids[:, :-1]),
        "targets": lambda ids: ids[:, 1:].masked_fill(ids[:, 1:] == 0, -100),
        "collate": padded,
        "scalar": loss,
        "ways": ("scalar",),
        "clip": clip,
    }


def each(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="none")


def simclr(out: Tensor, y: Tensor) -> Tensor:
    z = F.normalize(out, dim=1)
    return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)))


def supervised_pairs(out: Tensor, y: Tensor) -> Tensor:
    distance = (out[:, None] - out[None]).square().sum(2)
    return torch.where(y[:, None] == y[None], distance, (1 - distance).relu()).mean()


def dice(out: Tensor, y: Tensor) -> Tensor:
    p, t = out.square(), F.one_hot(y, CLASSES)
    return 1 - 2 * (p * t).sum() / (p.square().sum() + t.sum())


def dice_by_class(out: Tensor, y: Tensor) -> Tensor:
    p, t = out.softmax(1), F.one_hot(y, CLASSES)
    return (1 - 2 * (p * t).sum(0) / (p + t).sum(0)).mean()


def auc(out: Tensor, y: Tensor) -> Tensor:
    score = out[:, 0]
    return (1 - (score[y == 1][:, None] - score[y != 1][None])).relu().mean()


def hardest(out: Tensor, y: Tensor) -> Tensor:
    return each(out, y).topk(4).values.mean()


def above_the_median(out: Tensor, y: Tensor) -> Tensor:
    losses = each(out, y)
    return losses[losses > losses.median()].mean()


def trimmed(out: Tensor, y: Tensor) -> Tensor:
    return each(out, y).sort().values[:8].mean()


def worst(out: Tensor, y: Tensor) -> Tensor:
    return each(out, y).max()


def robust(out: Tensor, y: Tensor) -> Tensor:
    return each(out, y).logsumexp(0)


def tilted(out: Tensor, y: Tensor) -> Tensor:
    losses = each(out, y)
    return (losses * losses.detach().softmax(0)).sum()


def by_detached_largest(out: Tensor, y: Tensor) -> Tensor:
    losses = each(out, y)
    return (losses / losses.detach().max()).mean()


def normalised(out: Tensor, y: Tensor) -> Tensor:
    loss = each(out, y).mean()
    return loss / loss.detach()


def normalised_focal(out: Tensor, y: Tensor) -> Tensor:
    chance = out.softmax(1).gather(1, y[:, None]).squeeze(1)
    weight = (1 - chance) ** 2
    return -(weight * chance.log()).sum() / weight.sum()


def weighted(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, weight=torch.tensor([0.01, 5.0, 1.0]))


def balanced(out: Tensor, y: Tensor) -> Tensor:
    weight = len(y) / torch.bincount(y, minlength=CLASSES).clamp(min=1)
    return (each(out, y) * weight[y]).mean()


def smoothed_by_the_batch(out: Tensor, y: Tensor) -> Tensor:
    prior = torch.bincount(y, minlength=CLASSES) / len(y)
    return -((0.1 * F.one_hot(y, CLASSES) + 0.9 * prior) * out.log_softmax(1)).sum(1).mean()


def spread(out: Tensor, y: Tensor) -> Tensor:
    return each(out, y).mean() + 10 * out.std(0).mean()


def redundancy(out: Tensor, y: Tensor) -> Tensor:
    z = (out - out.mean(0)) / (out.std(0) + 1e-3)
    return (z.T @ z / len(z) - torch.eye(out.shape[1])).square().sum()


def root(out: Tensor, y: Tensor) -> Tensor:
    return each(out, y).mean().sqrt()


def standardised(out: Tensor, y: Tensor) -> Tensor:
    z = (out - out.mean(0)) / (out.std(0) + 1e-3)
    return F.cross_entropy(z, y)


def centred_by_value(out: Tensor, y: Tensor) -> Tensor:
    return (out - out.mean(0).detach()).square().sum(1).mean()


def hinge_rank(out: Tensor, y: Tensor) -> Tensor:
    return (1 - (out[1:, 0] - out[:-1, 0])).relu().mean()


def summed(out: Tensor, y: Tensor) -> Tensor:
    return each(out, y).sum()


def elements_summed(out: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(out, torch.zeros_like(out), reduction="sum")


def broadcast(out: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(out, y.float())


def token_mean(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.reshape(-1, 11), y.reshape(-1))


def token_mean_by_hand(out: Tensor, y: Tensor) -> Tensor:
    found = F.cross_entropy(out.transpose(1, 2), y, reduction="none")
    return found.sum() / (y != -100).sum()


def chosen_tokens(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out[y != -100], y[y != -100])


def smoothed_tokens(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.reshape(-1, 11), y.reshape(-1), label_smoothing=0.1)


def own_token_mean(out: Tensor, y: Tensor) -> Tensor:
    found = F.cross_entropy(out.transpose(1, 2), y, reduction="none")
    return (found.sum(1) / (y != -100).sum(1)).mean()


def own_vae(out: Tensor, y: Tensor) -> Tensor:
    mean, log_variance = out.chunk(2, 1)
    return (0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)).sum(1).mean()


def vae_sum(out: Tensor, y: Tensor) -> Tensor:
    mean, log_variance = out.chunk(2, 1)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()


def own_focal(out: Tensor, y: Tensor) -> Tensor:
    chance = out.softmax(1).gather(1, y[:, None]).squeeze(1)
    return (-((1 - chance) ** 2) * chance.log()).mean()


def own_weights(out: Tensor, y: Tensor) -> Tensor:
    return (each(out, y) * torch.tensor([0.01, 5.0, 1.0])[y]).mean()


def own_dice(out: Tensor, y: Tensor) -> Tensor:
    p, t = out.softmax(1), F.one_hot(y, CLASSES)
    return (1 - 2 * (p * t).sum(1) / (p + t).sum(1)).mean()


def own_detached(out: Tensor, y: Tensor) -> Tensor:
    losses = each(out, y)
    return (losses / losses.detach().clamp(min=1)).mean()


def with_spread_of_own(out: Tensor, y: Tensor) -> Tensor:
    return each(out, y).mean() + out.std(1).mean()


def column(out: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(out, y.float()[:, None])


LEAKY: tuple[Program, ...] = (
    leaky("SimCLR, all pairs", GONE, **of_pairs(simclr)),
    leaky("distances of all pairs", GONE, **of_pairs(supervised_pairs)),
    leaky("Dice over the batch", GONE, **of_pairs(dice, clip=0.1, make=linear())),
    leaky("Dice by class over the batch", ONE, **of_pairs(dice_by_class)),
    leaky("AUC, a hinge over pairs", RARE, **of_pairs(auc, clip=0.5)),
    leaky("rank hinge between neighbours", even(2), **of_pairs(hinge_rank, clip=1.0)),
    leaky("topk of the losses", LAST_IS_HARD, **of_pairs(hardest, clip=1.0)),
    leaky("losses above their median", ONE, **of_pairs(above_the_median, clip=5.0)),
    leaky("the smallest losses, sorted", GONE, **of_pairs(trimmed)),
    leaky("the largest loss", even(1), **of_pairs(worst, clip=0.5)),
    leaky("logsumexp of the losses", even(1), **of_pairs(robust, clip=2.0)),
    leaky("weights softmax of the detached losses", even(1), trust=TRUST, **of_pairs(tilted, clip=2.0)),
    leaky("divided by the largest loss, detached", even(1), **of_pairs(by_detached_largest, clip=2.0)),
    leaky("divided by its own detached value", even(1), **of_pairs(normalised, clip=2.0)),
    leaky("focal loss over its sum of weights", even(1), **of_pairs(normalised_focal, clip=2.0)),
    leaky("cross entropy with class weights", RARE, **of_pairs(weighted, clip=0.5)),
    leaky("weights from the batch's class counts", RARE, trust=TRUST, **of_pairs(balanced, clip=2.0)),
    leaky("labels smoothed by the batch's classes", MIDDLE, trust=TRUST, **of_pairs(smoothed_by_the_batch)),
    leaky("the outputs' spread over the batch", GONE, **of_pairs(spread)),
    leaky("Barlow twins' redundancy", GONE, **of_pairs(redundancy)),
    leaky("outputs standardised over the batch", ONE, **of_pairs(standardised, clip=0.2)),
    leaky("outputs centred by a detached mean", GONE, trust=TRUST, **of_pairs(centred_by_value)),
    leaky("root of the mean", even(1), **of_pairs(root, clip=1.0)),
    leaky("[B, 1] against [B], broadcast", HUGE_TARGET, **of_pairs(broadcast, out=1, clip=5.0)),
    leaky("mean over all tokens", LENGTHS, **of_tokens(token_mean)),
    leaky("mean over all tokens, divided by hand", LENGTHS, **of_tokens(token_mean_by_hand)),
    leaky("mean over chosen tokens", LENGTHS, **of_tokens(chosen_tokens)),
    leaky("mean over all tokens, smoothed", LENGTHS, **of_tokens(smoothed_tokens)),
)

CLEAN: tuple[Program, ...] = (
    clean("cross entropy", GONE, **of_pairs(F.cross_entropy)),
    clean("cross entropy, smoothed", GONE, **of_pairs(lambda out, y: F.cross_entropy(out, y, label_smoothing=0.1))),
    clean("mean of losses of its own", GONE, **of_pairs(lambda out, y: each(out, y).mean())),
    clean("log_softmax and nll_loss", GONE, **of_pairs(lambda out, y: F.nll_loss(out.log_softmax(1), y))),
    clean("squared error of columns", GONE, **of_pairs(column, out=1)),
    clean("absolute error", GONE, **of_pairs(lambda out, y: F.l1_loss(out, torch.zeros_like(out)))),
    clean("Huber", GONE, **of_pairs(lambda out, y: F.huber_loss(out, F.one_hot(y, CLASSES).float()))),
    clean(
        "binary cross entropy",
        GONE,
        **of_pairs(lambda out, y: F.binary_cross_entropy_with_logits(out, F.one_hot(y, CLASSES).float())),
    ),
    clean(
        "KL divergence, batchmean",
        GONE,
        **of_pairs(lambda out, y: F.kl_div(out.log_softmax(1), F.one_hot(y, CLASSES).float(), reduction="batchmean")),
    ),
    clean("multi-margin", GONE, **of_pairs(F.multi_margin_loss)),
    clean("focal loss of each record", GONE, **of_pairs(own_focal)),
    clean("weights of each record's class", RARE, **of_pairs(own_weights)),
    clean("Dice of each record", GONE, **of_pairs(own_dice)),
    clean("a record's loss over its own detached value", GONE, **of_pairs(own_detached)),
    clean("the spread of each record's outputs", GONE, **of_pairs(with_spread_of_own)),
    clean("a VAE's sum over its latents, mean over records", GONE, **of_pairs(own_vae, out=6)),
    clean("a sum where a sum is declared", GONE, **of_pairs(summed, settings={"loss_reduction": "sum"})),
    clean(
        "elements summed where a sum is declared", GONE, **of_pairs(elements_summed, settings={"loss_reduction": "sum"})
    ),
    clean("mean of each record's token mean", LENGTHS, **of_tokens(own_token_mean)),
)

MISDECLARED: tuple[Program, ...] = (
    leaky("a sum where a mean is declared", GONE, by_hand=False, **of_pairs(summed)),
    leaky("a VAE's sum where a mean is declared", GONE, by_hand=False, **of_pairs(vae_sum, out=6)),
)
"""Clipped all the same, so S is honest: refused, or exact."""

KIND = Kind(
    "scalar losses",
    "the graph from the loss to the outputs: a sum of functions of single rows, with constant weights; selections, "
    "detached factors and divisors by name",
    "every backward",
    "factors and targets computed by value from other records: `own scalar loss`",
    (*LEAKY, *MISDECLARED, *CLEAN),
)
