"""Leaks in the fifth and later calls of the model within one batch."""

from __future__ import annotations

from typing import Any

import torch
from silent_programs import Kind, Program, clean, leaky, linear, made, removed
from torch import Tensor, nn

X = 0.1 * torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
X[-1] = 1e3
DATA = removed(X)


def mix(h: Tensor) -> Tensor:
    return h / float(h.detach().abs().max())


def own(h: Tensor) -> Tensor:
    return h / h.detach().abs().amax(1, keepdim=True)


def last_of(count: int, *arguments: Any) -> Any:
    """Call the model `count` times with the number of the call, or as `arguments` say; the last output counts."""

    def call(model: Any, x: Tensor) -> Any:
        out = None
        for place in range(count):
            out = model(x, arguments[place] if arguments else place)
        return out

    return call


def at(place: Any, change: Any) -> Any:
    return made(lambda m, x, t: (lambda h: change(h) if t == place else h)(m[0](x)), linear())


class Counting(nn.Module):
    """Counts its calls in a Python attribute."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.a, self.calls, self.change = nn.Linear(4, 3), 0, change

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.a(x)
        return self.change(h) if self.calls % 6 == 0 else h


def counted(model: Any, x: Tensor) -> Any:
    for _ in range(6):
        out = model(x)
    return out


def over_time(model: Any, x: Tensor) -> Any:
    state = torch.zeros(len(x), 4)
    for t in range(8):
        state = model(x + state, t)
    return state


def time_cell(change: Any) -> Any:
    return made(lambda m, x, t: (lambda h: change(h) if t == 7 else 0.1 * h.tanh())(m[0](x)), linear(4, 4))


def widths(model: Any, x: Tensor) -> Any:
    """Calls of growing width, as in generation."""
    for width in range(1, 9):
        out = model(x[:, None].expand(-1, width, -1))
    return out


def by_width(change: Any) -> Any:
    return made(lambda m, x: (lambda h: change(h) if x.shape[1] == 8 else h)(m[0](x).mean(1)), linear())


def summed(model: Any, x: Tensor) -> Any:
    return sum(model(0.01 * x if t < 5 else x, t) for t in range(6))


WORDS = ("a", "a", "a", "a", "a", "b")


def in_evaluation(model: Any, x: Tensor) -> Any:
    """Five forwards without gradients, then the one that counts."""
    with torch.no_grad():
        for t in range(5):
            model(x, t)
    return model(x, 5)


def programs(kind: Any, change: Any, suffix: str) -> tuple[Program, ...]:
    return (
        kind(f"the sixth of six calls{suffix}", DATA, make=at(5, change), call=last_of(6)),
        kind(f"the fifth of five calls{suffix}", DATA, make=at(4, change), call=last_of(5)),
        kind(f"the tenth of ten calls{suffix}", DATA, make=at(9, change), call=last_of(10)),
        kind(f"the sixth of six calls, all summed{suffix}", DATA, make=at(5, change), call=summed),
        kind(f"a constant word in the sixth call{suffix}", DATA, make=at("b", change), call=last_of(6, *WORDS)),
        kind(f"a counter of its own{suffix}", DATA, make=lambda: Counting(change), call=counted),
        kind(f"a loop over time, its last step{suffix}", DATA, make=time_cell(change), call=over_time),
        kind(f"widths 1 to 8, the widest{suffix}", DATA, make=by_width(change), call=widths),
        kind(f"the first call with gradients is the sixth{suffix}", DATA, make=at(5, change), call=in_evaluation),
    )


KIND = Kind(
    "fifth and later calls",
    "calls of one batch that have another argument, width or number: the last ones too",
    "first batch",
    "nothing",
    (*programs(leaky, mix, ""), *programs(clean, own, ", each record's own")),
)
