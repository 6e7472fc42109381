"""Losses of all kinds: in 16 bits, over tokens and pixels, of several outputs, with terms of the parameters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brought.running import (
    LABELLED,
    ROUNDED,
    B,
    Brought,
    D,
    Run,
    T,
    X,
    Y,
    by,
    by_criterion,
    by_losses,
    exact,
    network,
    refused,
    refused_for_good,
)

# 16 bits -----------------------------------------------------------------------------------------------------------


def in_bf16(model: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return F.cross_entropy(model(x), y)


def called_in_bf16(model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return model(x), y


def with_scaler(run: Run) -> None:
    scaler = torch.amp.GradScaler("cpu")
    for x, y in run.loader:
        run.optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(run.model(x), y)
        scaler.scale(loss).backward()
        scaler.step(run.optimizer)
        scaler.update()


def in_fp16(model: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.float16):
        return F.cross_entropy(model(x), y)


SIXTEEN_BITS: dict[str, Brought] = {
    "`torch.autocast` in bf16, `F.cross_entropy(...)`": exact(**by(in_bf16), tolerance=ROUNDED),
    "the same with `engine.per_example(criterion)`": exact(
        **by_criterion(nn.CrossEntropyLoss(), call=called_in_bf16), tolerance=ROUNDED
    ),
    "`model.bfloat16()`": exact(
        make=lambda: network().bfloat16(), **by(lambda m, x, y: F.cross_entropy(m(x.bfloat16()), y)), tolerance=ROUNDED
    ),
    "float16 with a `GradScaler`": refused(
        "DP403", {"loop": with_scaler, "tolerance": ROUNDED}, "no scaler: `PrivacyEngine(loss_scale=2.0**10)`",
        {**by(in_fp16), "engine": {"loss_scale": 2.0**10}},
    ),
}  # fmt: skip

# Means over other than records -------------------------------------------------------------------------------------

IGNORED = -100
LANGUAGE = []
for row in range(B):
    ids = (torch.arange(T) + row) % 7
    LANGUAGE.append((ids, torch.where(torch.arange(T) <= row % T, ids, IGNORED)))
PIXELS = [(x.view(1, 2, 2), (x.view(2, 2) > 0).float()) for x in X]


def language() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, D), nn.Linear(D, 7))


def over_tokens(model: Any, ids: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(ids).flatten(0, 1), y.flatten(), ignore_index=IGNORED)


def batch_dice(model: Any, x: Tensor, y: Tensor) -> Tensor:
    p = model(x).squeeze(1).sigmoid()
    return 1 - 2 * (p * y).sum() / (p.sum() + y.sum() + 1)


def own_dice(model: Any, x: Tensor, y: Tensor) -> Tensor:
    p = model(x).squeeze(1).sigmoid()
    return 1 - 2 * (p * y).sum((1, 2)) / (p.sum((1, 2)) + y.sum((1, 2)) + 1)


def contrastive(model: Any, x: Tensor, y: Tensor) -> Tensor:
    z = F.normalize(model(x))
    return F.cross_entropy(z @ z.T, torch.arange(len(z)))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(D, 4), nn.Linear(2, D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x).chunk(2, -1)
        return self.decode(mean), mean, log_variance


def evidence(model: Any, x: Tensor, y: Tensor) -> Tensor:
    out, mean, log_variance = model(x)
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
    return F.mse_loss(out, x, reduction="sum") + divergence


def in_passes(program: dict[str, Any]) -> dict[str, Any]:
    """Two passes over the data: the second shows that what the first was given beside it is constant."""

    def loop(run: Run) -> None:
        for _ in range(2):
            program["loop"](run)

    return {**program, "loop": loop}


CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 0.5])

MEANS: dict[str, Brought] = {
    "a mean over the tokens of the batch, `ignore_index`": refused(
        "DP301", {"make": language, "records": LANGUAGE, **by(over_tokens)},
        "`engine.per_example(nn.CrossEntropyLoss(ignore_index=-100))`",
        by_criterion(nn.CrossEntropyLoss(ignore_index=IGNORED), call=lambda m, ids, y: (m(ids).transpose(1, 2), y)),
    ),
    "a mean weighted by class, `F.cross_entropy(..., weight=w)`": refused(
        "DP301", by(lambda m, x, y: F.cross_entropy(m(x), y, weight=CLASS_WEIGHTS)),
        "`engine.per_example(nn.CrossEntropyLoss(weight=w))`",
        in_passes(by_criterion(nn.CrossEntropyLoss(weight=CLASS_WEIGHTS),
                               of_one=nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, reduction="none"))),
    ),
    "Dice over the pixels of the batch": refused(
        "DP301", {"make": lambda: nn.Conv2d(1, 1, 1), "records": PIXELS, **by(batch_dice)},
        "Dice of each record, `[B]`: `session.backward(losses)`", by_losses(own_dice),
    ),
    "sums over the batch (VAE)": refused(
        "DP303", {"make": Autoencoder, **by(evidence)}, '`make_private(..., loss_reduction="sum")`',
        {"settings": {"loss_reduction": "sum"}},
    ),
    "pairs of records (SimCLR)": refused_for_good(
        "DP301", "a pair is no record's own: contrast views of one record, or records with public features",
        clip=1.0, **by(contrastive),
    ),
}  # fmt: skip

# Several inputs of a criterion -------------------------------------------------------------------------------------


class Moments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean, self.variance = nn.Linear(D, 1), nn.Linear(D, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), self.variance(x).exp()


def views(m: Any, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return m(x), m(x.roll(1, 1)), m(x.flip(1))


def regressed(m: Any, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    mean, variance = m(x)
    return mean, x[:, :1], variance


def spoken(m: Any, ids: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    out = m(ids).log_softmax(-1).transpose(0, 1)
    return out, 1 + ids[:, :2], torch.full((len(ids),), T), torch.full((len(ids),), 2)


CRITERIA: dict[str, Brought] = {
    "`engine.per_example(nn.TripletMarginLoss())(a, p, n)`": exact(
        **by_criterion(nn.TripletMarginLoss(margin=9.0), call=views)
    ),
    "`nn.CosineEmbeddingLoss`": exact(
        **by_criterion(nn.CosineEmbeddingLoss(), call=lambda m, x, y: (m(x), m(x.flip(1)), 2 * (y > 0) - 1))
    ),
    "`nn.GaussianNLLLoss`": exact(make=Moments, **by_criterion(nn.GaussianNLLLoss(), call=regressed)),
    "`nn.CTCLoss`": exact(
        make=lambda: nn.Sequential(nn.Embedding(8, D), nn.Linear(D, 9)), records=LANGUAGE,
        **by_criterion(nn.CTCLoss(), call=spoken),
    ),
    "a record that is NaN": exact(
        records=[(torch.full((D,), torch.nan), Y[0]), *LABELLED[1:]], **by_criterion(nn.CrossEntropyLoss())
    ),
}  # fmt: skip

# Terms beside the losses -------------------------------------------------------------------------------------------


def critic() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 1))


def penalties(model: Any, x: Tensor) -> Tensor:
    x = (0.5 * x).requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return (slope.norm(2, 1) - 1) ** 2


def proximal(model: Any) -> Any:
    return sum((p - 0.5).square().sum() for p in model.parameters())


def with_term(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y) + 0.05 * proximal(model)


class OwnTasks(nn.Module):
    """Returns a loss for each record, in which a trained number weighs a task."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.s = network(), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.net(x), y, reduction="none") * (-self.s).exp() + self.s


def weighed_by_the_loop(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model.net(x), y, reduction="none") * (-model.s).exp() + model.s


def regularized(run: Run) -> None:
    run.session.regularizer(lambda: proximal(run.model), weight=0.05)
    plain["loop"](run)


plain = by(lambda m, x, y: F.cross_entropy(m(x), y))

TERMS: dict[str, Brought] = {
    "a gradient penalty (WGAN-GP), averaged over the batch": refused(
        "DP305", {"make": critic, **by(lambda m, x, y: (10 * penalties(m, x) - m(x)[:, 0]).mean())},
        "a penalty for each record: `session.backward(losses)`",
        by_losses(lambda m, x, y: 10 * penalties(m, x) - m(x)[:, 0]),
    ),
    "a term of the parameters (FedProx, a prior)": refused(
        "DP401", {**plain, "loop": by(with_term)["loop"]}, "`session.regularizer(term, weight=0.05)` before the loop",
        {"loop": regularized, "term": lambda m: 0.05 * proximal(m)},
    ),
    "a trained weight of a task, used by the loop": refused(
        "DP401", {"make": OwnTasks, **by_losses(weighed_by_the_loop)}, "the same in the model's forward",
        by_losses(lambda m, x, y: m(x, y)),
    ),
}  # fmt: skip
