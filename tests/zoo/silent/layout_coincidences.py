"""Batches whose records lie on another axis than the first, where both axes have one size."""

from __future__ import annotations

from typing import Any

import torch
from silent_programs import Kind, Program, clean, leaky, linear, made, replaced
from torch import Tensor, nn

SIDE = 8
X = 0.1 * torch.randn(SIDE, SIDE, 4, generator=torch.Generator().manual_seed(2))
X[-1] = 4.0
SEQUENCES = replaced(X, -1, torch.zeros(SIDE, 4))
V = 0.1 * torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(2))
V[-1] = 4.0
VECTORS = replaced(V, -1, torch.zeros(SIDE))
IDS = torch.randint(0, 7, (SIDE, SIDE), generator=torch.Generator().manual_seed(2))
TOKENS = replaced(IDS, -1, torch.full((SIDE,), 6))
WAYS = ("session", "scalar")


def turned(model: Any, x: Tensor) -> Any:
    return model(x.transpose(0, 1))


def time_first(records: Any) -> Tensor:
    return torch.stack(list(records), 1)


def by_column(out: Tensor, target: Tensor) -> Tensor:
    """Losses of `[T, B, k]` for the records on the second axis."""
    return out.square().sum(2).mean(0)


def positionwise() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))


def inside(f: Any) -> Any:
    """Transpose in the forward, apply `f`, and transpose back."""
    return lambda m, x: f(m, x.transpose(0, 1)).transpose(0, 1)


def recurrent(kind: Any, batch_first: bool) -> Any:
    return lambda: kind(4, 3, batch_first=batch_first)


LEAKY: tuple[Program, ...] = (
    leaky(
        "[T, B, d] by the loop, position-wise",
        SEQUENCES,
        make=positionwise,
        call=turned,
        loss=by_column,
        ways=WAYS,
        by_hand=False,
    ),
    leaky(
        "[T, B, d] by the collate, position-wise",
        SEQUENCES,
        make=positionwise,
        collate=time_first,
        loss=by_column,
        ways=WAYS,
        by_hand=False,
    ),
    leaky(
        "[T, B, d], GRU over time",
        SEQUENCES,
        call=turned,
        loss=by_column,
        ways=WAYS,
        by_hand=False,
        make=made(lambda m, x: m[0](x)[0], recurrent(nn.GRU, False)),
    ),
    leaky(
        "torch's own order given to a batch-first LSTM",
        SEQUENCES,
        call=turned,
        loss=by_column,
        ways=WAYS,
        by_hand=False,
        make=made(lambda m, x: m[0](x)[0], recurrent(nn.LSTM, True)),
    ),
    leaky(
        "[B, T, d] given to a time-first LSTM",
        SEQUENCES,
        make=made(lambda m, x: m[0](x)[0], recurrent(nn.LSTM, False)),
        by_hand=False,
    ),
    leaky(
        "x.T of a square batch",
        VECTORS,
        make=linear(SIDE, SIDE),
        call=lambda model, x: model(x.T),
        loss=lambda out, y: out.square().mean(0),
        ways=WAYS,
        by_hand=False,
    ),
    leaky(
        "ids.T of a square batch",
        TOKENS,
        make=lambda: nn.Embedding(7, 3),
        call=lambda model, x: model(x.T),
        loss=by_column,
        ways=WAYS,
        by_hand=False,
    ),
    leaky(
        "[T, B, d], attention over the first axis",
        SEQUENCES,
        call=turned,
        loss=by_column,
        ways=WAYS,
        by_hand=False,
        make=made(lambda m, x: m[0](x, x, x, need_weights=False)[0], lambda: nn.MultiheadAttention(4, 1)),
    ),
    leaky(
        "[T, B, d], convolution over the last axis",
        SEQUENCES,
        call=turned,
        loss=by_column,
        ways=WAYS,
        by_hand=False,
        make=made(lambda m, x: m[0](x), lambda: nn.Conv1d(SIDE, SIDE, 3, padding=1)),
    ),
)

CLEAN: tuple[Program, ...] = (
    clean("[B, T, d], position-wise", SEQUENCES, make=positionwise),
    clean(
        "turned inside the forward and back",
        SEQUENCES,
        make=made(inside(lambda m, x: m[0](x)[0]), recurrent(nn.GRU, False)),
    ),
    clean("batch-first LSTM", SEQUENCES, make=made(lambda m, x: m[0](x)[0], recurrent(nn.LSTM, True))),
    clean(
        "[T, B, d] by the collate, turned by the loop", SEQUENCES, make=positionwise, collate=time_first, call=turned
    ),
    clean("square vectors", VECTORS, make=linear(SIDE, SIDE)),
    clean("square ids", TOKENS, make=lambda: nn.Embedding(7, 3)),
    clean(
        "batch-first attention",
        SEQUENCES,
        make=made(
            lambda m, x: m[0](x, x, x, need_weights=False)[0], lambda: nn.MultiheadAttention(4, 1, batch_first=True)
        ),
    ),
    clean(
        "turned by the loop and turned back",
        SEQUENCES,
        make=positionwise,
        call=lambda model, x: model(x.transpose(0, 1).transpose(0, 1)),
    ),
)

KIND = Kind(
    "layout by coincidence",
    "the axis that inputs, outputs and losses keep their records on",
    "first batch; the losses of every batch",
    "nothing",
    (*LEAKY, *CLEAN),
)
