"""A large head beside a small one: what differs little by the large one's measure."""

from __future__ import annotations

from typing import Any

import torch
from silent_programs import Kind, Program, clean, leaky, removed
from torch import Tensor, nn

X = 0.5 * torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
X[-1] = 100
DATA = removed(X)


def whole(h: Tensor) -> Tensor:
    return h / max(1.0, float(h.detach().abs().max()))


def own(h: Tensor) -> Tensor:
    return h / h.detach().abs().amax(1, keepdim=True).clamp(min=1)


class Two(nn.Module):
    """Logits `[B, 3]` and a head in large units, put together by `join`."""

    def __init__(self, limit: Any, join: Any, size: float) -> None:
        super().__init__()
        self.a, self.c, self.limit, self.join, self.size = nn.Linear(4, 3), nn.Linear(4, 1), limit, join, size

    def forward(self, x: Tensor) -> Any:
        return self.join(self.size * (2 + self.c(x)), self.limit(self.a(x)))


def columns(large: Tensor, small: Tensor) -> Tensor:
    return torch.cat([large, small], 1)


def channels(large: Tensor, small: Tensor) -> Tensor:
    return torch.stack([large.expand(-1, 3), small], 1)


def positions(large: Tensor, small: Tensor) -> Tensor:
    return torch.stack([small, large.expand(-1, 3)], 2)


def small_loss(pick: Any, size: float) -> Any:
    def loss(out: Any, target: Tensor) -> Tensor:
        large, small = pick(out)
        return (large * 0.1 / size).square() + 5 * small.square().sum(1)

    return loss


PICKS: dict[Any, Any] = {
    columns: lambda out: (out[:, 0], out[:, 1:]),
    channels: lambda out: (out[:, 0, 0], out[:, 1]),
    positions: lambda out: (out[:, 0, 1], out[:, :, 0]),
}


class Offset(nn.Module):
    """Logits beside a constant mask of -1e9."""

    def __init__(self, limit: Any) -> None:
        super().__init__()
        self.a, self.limit = nn.Linear(4, 3), limit

    def forward(self, x: Tensor) -> Tensor:
        h = self.limit(self.a(x))
        return torch.cat([h, torch.full((len(h), 1), -1e9)], 1)


def first_three(out: Tensor, target: Tensor) -> Tensor:
    return 5 * out[:, :3].square().sum(1)


def programs(kind: Any, limit: Any, suffix: str) -> tuple[Program, ...]:
    found = []
    for join, pick in PICKS.items():
        for size in (1e5, 1e6, 1e7):

            def make(join: Any = join, size: float = size) -> nn.Module:
                return Two(limit, join, size)

            name = f"{join.__name__} in units of {size:.0e}{suffix}"
            found.append(kind(name, DATA, make=make, loss=small_loss(pick, size)))
    return (
        *found,
        kind(f"a mask of -1e9 beside the logits{suffix}", DATA, make=lambda: Offset(limit), loss=first_three),
    )


KIND = Kind(
    "relative tolerance",
    "each value of an output against its own size, not against the largest one's",
    "first batch",
    "differences below the rounding of a float32 kernel",
    (*programs(leaky, whole, ""), *programs(clean, own, ", each record's own")),
)
