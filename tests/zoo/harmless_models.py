"""Models and losses that look like leaks and are none: the probe must let every one of them train."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from leaky_models import BATCH, CLASSES, WIDTH, Body, Make, Tokens, at_the_end, layer
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


def frozen_batch_norm() -> nn.Module:
    model = layer(lambda: nn.BatchNorm1d(WIDTH))()
    model[1].eval()
    return model


class SharedMask(Body):
    """One dropout mask for the whole batch."""

    def middle(self, h: Tensor) -> Tensor:
        return h * F.dropout(torch.ones(1, WIDTH), 0.5)


class Noisy(Body):
    """Noise on activations, and a random choice for the whole batch that no example decides."""

    def middle(self, h: Tensor) -> Tensor:
        h = h + 0.1 * torch.randn_like(h)
        return h if torch.rand(()) < 0.5 else h.relu()


class Counting(Body):
    """Counts its calls and anneals a temperature by them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def middle(self, h: Tensor) -> Tensor:
        self.calls += 1
        self.steps += 1
        return h / (1 + 0.1 * self.calls)


CALLS: list[int] = []


class CountingOutside(Body):
    """Counts its calls in a variable of the module's file."""

    def middle(self, h: Tensor) -> Tensor:
        CALLS.append(1)
        return h / (1 + 0.1 * len(CALLS))


class Caching(Body):
    """Keeps its last activations for a look at them."""

    def middle(self, h: Tensor) -> Tensor:
        self.seen = h.detach()
        return h


class CachingHistory(Body):
    """Keeps a list of shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def middle(self, h: Tensor) -> Tensor:
        self.shapes = [*self.shapes, tuple(h.shape[1:])][-3:]
        return h


class Teacher(Body):
    """A moving average of its own weights, made in the forward, as in BYOL."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = copy.deepcopy(self.first).requires_grad_(False)

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.first.parameters(), strict=True):
                slow.mul_(0.9).add_(0.1 * fast)
        return h + self.slow(h)


class Checkpointed(Body):
    def middle(self, h: Tensor) -> Tensor:
        return checkpoint(torch.tanh, h, use_reentrant=False)


class CheckpointedLayer(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.first, x, use_reentrant=False))


class InPlace(Body):
    def middle(self, h: Tensor) -> Tensor:
        return F.relu(h * 1.0, inplace=True)


class EarlyExitPerExample(Body):
    def middle(self, h: Tensor) -> Tensor:
        return torch.where(h.abs().amax(1, keepdim=True) > 0.7, h, 2 * h)


class Experts(nn.Module):
    """Two experts, each example goes to its own choice."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 2)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x).softmax(1)
        return sum(gates[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor
    note: str = "kept"


class InADataclass(Body):
    def forward(self, x: Tensor) -> Answer:
        hidden = self.first(x).tanh()
        return Answer(self.head(hidden), hidden)


class InADictionary(Body):
    """Returns a mean over the batch beside its outputs, for a log; no loss looks at it."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = self.first(x).tanh()
        return {"logits": self.head(hidden), "mean": hidden.detach().mean(), "nothing": None}


class Recurrent(nn.Module):
    """Uses the last state, whose batch is on axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)
        self.body = nn.GRU(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        _, state = self.body(self.table(ids))
        return self.head(state[-1]), state


class MaskedMean(nn.Module):
    """Ids of 0 are padding and count for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH, padding_idx=0)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != 0).float().unsqueeze(-1)
        return self.head((self.table(ids) * mask).sum(1) / mask.sum(1).clamp(min=1))


class Positions(nn.Module):
    """Position embeddings, a class token and a causal mask: inputs and parameters without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)
        self.position = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.body = nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True, dropout=0.1)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids) + self.position
        h = torch.cat([self.token.expand(ids.shape[0], 1, WIDTH), h], 1)
        return self.head(self.body(h, src_mask=nn.Transformer.generate_square_subsequent_mask(6))[:, 0])


class OwnMeanLoss(nn.Module):
    """Returns the mean of the examples' own losses."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 11)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        logits = self.table(ids)
        losses = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none").mean(1)
        return {"loss": losses.mean(), "logits": logits}


def spectral(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(layer)


def old_spectral() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH).requires_grad_(False), nn.Linear(WIDTH, CLASSES))


def hooked() -> nn.Module:
    """A hook that looks and leaves alone."""
    model = layer(nn.Tanh)()
    model[0].register_forward_hook(lambda module, args, out: None)
    return model


def images() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=1), nn.GroupNorm(2, 4), nn.ReLU(inplace=True),
        nn.Dropout2d(0.3), nn.InstanceNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES),
    )  # fmt: skip


def quantised(h: Tensor) -> Tensor:
    codes = torch.eye(h.shape[1])
    return h + (codes[torch.cdist(h, codes).argmin(1)] - h).detach()


def solved(h: Tensor) -> Tensor:
    return torch.linalg.solve(h.unsqueeze(2) * h.unsqueeze(1) + torch.eye(h.shape[1]), h)


class Prototypes(Body):
    """Logits are distances to trained prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.first(x), self.prototypes)


class Transitions(Body):
    """Scores of pairs of labels, and of a label for each class, are read from trained tables."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.Parameter(torch.randn(CLASSES, CLASSES))
        self.emissions = nn.Parameter(torch.randn(WIDTH, 2))

    def middle(self, h: Tensor) -> Tensor:
        labels = (h.detach() * 10).long().abs() % CLASSES
        kind = (h[:, 0] > 0).long()
        return h + self.pairs[labels, labels.roll(1, 1)] + self.emissions[:, kind].T


ON_FEATURES: list[tuple[str, Make, str]] = [
    ("frozen batch norm", frozen_batch_norm, "tensor"),
    ("dropout", layer(lambda: nn.Dropout(0.5)), "tensor"),
    ("a dropout mask for all", SharedMask, "tensor"),
    ("noise and a coin", Noisy, "tensor"),
    ("alpha dropout", layer(lambda: nn.AlphaDropout(0.3)), "tensor"),
    ("random leaky relu", layer(nn.RReLU), "tensor"),
    ("calls are counted", Counting, "tensor"),
    ("calls are counted outside of the model", CountingOutside, "tensor"),
    ("activations are cached", Caching, "tensor"),
    ("shapes are remembered", CachingHistory, "tensor"),
    ("a teacher of moving weights", Teacher, "tensor"),
    ("checkpointing of a function", Checkpointed, "tensor"),
    ("checkpointing of a layer", CheckpointedLayer, "tensor"),
    ("in place", InPlace, "tensor"),
    ("decisions of each example", EarlyExitPerExample, "tensor"),
    ("experts of each example", Experts, "tensor"),
    ("outputs in a dataclass", InADataclass, "dataclass"),
    ("outputs in a dictionary, with a statistic", InADictionary, "dictionary"),
    ("a hook that only looks", hooked, "tensor"),
    ("images, group and instance norm", images, "tensor"),
    ("layer norm", layer(lambda: nn.LayerNorm(WIDTH)), "tensor"),
    ("softmax over classes", at_the_end(lambda h: h.softmax(1)), "tensor"),
    ("logits minus their own maximum", at_the_end(lambda h: h - h.amax(1, keepdim=True).detach()), "tensor"),
    ("float64", lambda: layer(nn.Tanh)().double(), "float64"),
    ("weight norm", layer(lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))), "tensor"),
    ("spectral norm", layer(lambda: spectral(nn.Linear(WIDTH, WIDTH))), "tensor"),
    ("frozen spectral norm", layer(lambda: spectral(nn.Linear(WIDTH, WIDTH).requires_grad_(False))), "tensor"),
    ("a frozen first layer", old_spectral, "tensor"),
    ("a function of each example", at_the_end(lambda h: torch.stack([row.softmax(0) for row in h])), "tensor"),
    ("halves of the batch", at_the_end(lambda h: torch.cat([part.tanh() for part in h.chunk(2)])), "tensor"),
    ("two views end to end", at_the_end(lambda h: sum(torch.cat([h, h.sin()]).tanh().chunk(2))), "tensor"),
    ("nearest codes", at_the_end(quantised), "tensor"),
    ("distances to prototypes", Prototypes, "tensor"),
    ("transitions between labels", Transitions, "tensor"),
    ("a linear system for each example", at_the_end(solved), "tensor"),
]  # fmt: skip

ON_TOKENS: list[tuple[str, Make, str]] = [
    ("states of a recurrent layer", Recurrent, "tuple"),
    ("a masked mean", MaskedMean, "tensor"),
    ("positions, class token, causal mask", Positions, "tensor"),
    ("attention within each example",
     lambda: Tokens(nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True)), "tensor"),
    ("the model's own mean loss", OwnMeanLoss, "own loss"),
]  # fmt: skip


def focal(out: Tensor, y: Tensor) -> Tensor:
    losses = F.cross_entropy(out, y, reduction="none")
    return (1 - (-losses).exp()) ** 2 * losses


class Weighted(nn.Module):
    """Fixed class weights in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([1.0, 2.0, 0.5]))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y, reduction="none") * self.weights[y]


CRITERIA: list[tuple[str, Callable[[], Any]]] = [
    ("cross entropy", nn.CrossEntropyLoss),
    ("class weights and smoothing",
     lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)),
    ("an ignored class", lambda: nn.CrossEntropyLoss(ignore_index=1)),
    ("focal loss", lambda: focal),
    ("fixed weights in a buffer", Weighted),
    ("entropy of each example", lambda: lambda out, y: F.cross_entropy(out, y, reduction="none")
     - (out.softmax(1) * out.log_softmax(1)).sum(1)),
    ("squared error of one-hot targets", lambda: lambda out, y: (out - F.one_hot(y, CLASSES)).square().mean(1)),
]  # fmt: skip

__all__ = ["BATCH", "CRITERIA", "ON_FEATURES", "ON_TOKENS"]
