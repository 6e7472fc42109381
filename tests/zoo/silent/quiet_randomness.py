"""Random numbers whose scale, probability, number or seed follows the batch."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from silent_programs import Kind, Program, clean, leaky, linear, made, replaced
from torch import Tensor, nn

COUNT = 16
X = 0.1 * torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1))
FAR = replaced(X, -1, torch.full((4,), 1000.0))
P = 0.3 * X.abs() * 10
HOT = replaced(P, -1, torch.full((4,), 60.0))
I = torch.ones(COUNT, 6).long()  # noqa: E741
IDS = replaced(I, -1, torch.tensor([5, 1, 1, 1, 1, 1]))


def noisy(scale: Any) -> Any:
    return made(lambda m, x: m[0](x + 2 * torch.randn_like(x) * scale(x)), linear())


def dropped(rate: Any) -> Any:
    return made(lambda m, x: m[0](F.dropout(x, rate(x), True)), linear())


def seeded(seed: Any) -> Any:
    def forward(m: Any, ids: Tensor) -> Tensor:
        seed(ids)
        return m[0](F.dropout(ids.float()[:, :4], 0.5, True))

    return made(forward, linear())


def of_generator(seed: Any) -> Any:
    def forward(m: Any, ids: Tensor) -> Tensor:
        noise = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed(ids)))
        return m[0](ids.float()[:, :4] + noise)

    return made(forward, linear())


def of_numpy(seed: Any) -> Any:
    def forward(m: Any, ids: Tensor) -> Tensor:
        noise = np.random.default_rng(seed(ids)).normal(size=(1, 4)).astype(np.float32)
        return m[0](ids.float()[:, :4] + torch.from_numpy(noise))

    return made(forward, linear())


def of_python(seed: Any) -> Any:
    def forward(m: Any, ids: Tensor) -> Tensor:
        random.seed(seed(ids))
        return m[0](ids.float()[:, :4] * (1 if random.random() < 0.5 else -1) + random.random())

    return made(forward, linear())


def skipping(draws: Any) -> Any:
    """Throw numbers away before dropout."""

    def forward(m: Any, x: Tensor) -> Tensor:
        torch.randn(draws(x))
        return m[0](F.dropout(x, 0.5, True))

    return made(forward, linear())


class Drawing:
    """A collate function with generators of its own, which begin anew with each model that is made."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.begin()

    def begin(self) -> None:
        self.numpy, self.python = np.random.default_rng(3), random.Random(3)

    def __call__(self, records: Any) -> Tensor:
        return self.rows(self, torch.stack(list(records)), records)  # type: ignore[no-any-return]


def collated(rows: Any) -> dict[str, Any]:
    """Return what trains a linear layer on `rows(generators, x, records)`."""
    drawing = Drawing(rows)

    def make() -> nn.Module:
        drawing.begin()
        return nn.Linear(4, 3)

    return {"collate": drawing, "make": make}


def mixed_up(g: Drawing, x: Tensor, records: Any) -> Tensor:
    share = g.numpy.beta(1, 1)
    return (share * x + (1 - share) * x[g.numpy.permutation(len(x))]).float()


def cut_and_mixed(g: Drawing, x: Tensor, records: Any) -> Tensor:
    others = list(records)
    g.python.shuffle(others)
    return torch.cat([x[:, :2], torch.stack(others)[:, 2:]], 1)


def pasted(g: Drawing, x: Tensor, records: Any) -> Tensor:
    return torch.stack([record + 0.5 * g.python.choice(records) for record in records])


def flipped(g: Drawing, x: Tensor, records: Any) -> Tensor:
    return torch.stack([record.flip(0) if g.python.random() < 0.5 else record for record in records])


def noised(g: Drawing, x: Tensor, records: Any) -> Tensor:
    return x + torch.from_numpy(0.1 * g.numpy.normal(size=tuple(x.shape))).float()


def masked(g: Drawing, x: Tensor, records: Any) -> Tensor:
    kept = torch.from_numpy(g.numpy.random(tuple(x.shape)) < 0.7)
    return x * kept + 0.1 * torch.from_numpy(g.numpy.normal(size=tuple(x.shape))).float() * ~kept


LEAKY: tuple[Program, ...] = (
    leaky("collate: mixed up by NumPy's beta", FAR, by_hand=False, **collated(mixed_up)),
    leaky("collate: halves of shuffled records", FAR, by_hand=False, **collated(cut_and_mixed)),
    leaky("collate: a random record pasted into each", FAR, by_hand=False, **collated(pasted)),
    leaky(
        "collate: mixed up in some batches",
        FAR,
        by_hand=False,
        **collated(lambda g, x, records: mixed_up(g, x, records) if g.python.random() < 0.5 else x),
    ),
    leaky(
        "collate: centred, with noise",
        FAR,
        by_hand=False,
        **collated(lambda g, x, records: noised(g, x - x.mean(0), records)),
    ),
    leaky("noise of scale max(0., float(x.std()))", FAR, make=noisy(lambda x: max(0.0, float(x.std())))),
    leaky("noise of scale nan_to_num(x.std())", FAR, make=noisy(lambda x: x.std().nan_to_num())),
    leaky(
        "noise of scale x.abs().max() kept below 1e6", FAR, make=noisy(lambda x: float(x.abs().max().clamp(max=1e6)))
    ),
    leaky(
        "noise of scale 1 if (x > 50).any() else 0.01", HOT, make=noisy(lambda x: 1.0 if bool((x > 50).any()) else 0.01)
    ),
    leaky(
        "normal(0, x.std())",
        FAR,
        make=made(lambda m, x: m[0](x + torch.normal(torch.zeros_like(x), max(1e-3, float(x.std())))), linear()),
    ),
    leaky("dropout rate by (x > 50).any()", HOT, make=dropped(lambda x: 0.1 if bool((x > 50).any()) else 0.8)),
    leaky(
        "dropout rate by the mean", HOT, make=dropped(lambda x: min(0.9, 0.1 + 0.3 * max(0.0, float(x.mean()) - 0.3)))
    ),
    leaky(
        "bernoulli by the batch",
        HOT,
        make=made(
            lambda m, x: m[0](x * torch.bernoulli(torch.full_like(x, 0.9 if bool((x > 50).any()) else 0.2))), linear()
        ),
    ),
    leaky("manual_seed(int(ids.sum())), dropout", IDS, make=seeded(lambda ids: torch.manual_seed(int(ids.sum())))),
    leaky("a generator seeded by ids.sum()", IDS, make=of_generator(lambda ids: int(ids.sum()))),
    leaky("a NumPy generator seeded by ids.sum()", IDS, make=of_numpy(lambda ids: int(ids.sum()))),
    leaky("random.seed(ids.sum())", IDS, make=of_python(lambda ids: int(ids.sum()))),
)

CLEAN: tuple[Program, ...] = (
    clean("collate: each record flipped or not", FAR, **collated(flipped)),
    clean("collate: noise of NumPy's for the whole batch", FAR, **collated(noised)),
    clean("collate: values replaced by noise", FAR, told=("not examined",), **collated(masked)),
    clean("noise of a fixed scale", FAR, make=noisy(lambda x: 0.3)),
    clean("noise of each record's own scale", FAR, make=noisy(lambda x: x.std(1, keepdim=True))),
    clean("noise of a learned-once scale", FAR, make=noisy(lambda x: torch.tensor(0.3))),
    clean("normal(0, 0.3)", FAR, make=made(lambda m, x: m[0](x + torch.normal(torch.zeros_like(x), 0.3)), linear())),
    clean("dropout of a fixed rate", HOT, make=dropped(lambda x: 0.5)),
    clean(
        "bernoulli of each record's own rate",
        HOT,
        told=("not examined",),
        make=made(lambda m, x: m[0](x * torch.bernoulli(x.mean(1, keepdim=True).clamp(0, 1).expand_as(x))), linear()),
    ),
    clean(
        "bernoulli of a fixed rate",
        HOT,
        make=made(lambda m, x: m[0](x * torch.bernoulli(torch.full_like(x, 0.4))), linear()),
    ),
    clean("a generator of a fixed seed", IDS, make=of_generator(lambda ids: 3)),
    clean("a NumPy generator of a fixed seed", IDS, make=of_numpy(lambda ids: 3)),
    clean("random.seed(3)", IDS, make=of_python(lambda ids: 3)),
    clean("a fixed number of numbers thrown away", HOT, make=skipping(lambda x: 5)),
)

KIND = Kind(
    "quiet randomness",
    "the same draws with other companions, at their own scale; where generators stand afterwards",
    "first batch",
    "nothing",
    (*LEAKY, *CLEAN),
)
