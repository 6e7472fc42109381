"""Gradient penalties: losses made of gradients by inputs, which come by no output of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from silent_programs import Kind, Program, clean, leaky, removed, replaced
from torch import Tensor, nn

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
FAR = replaced(X, -1, torch.full((4,), 30.0))
GONE = removed(torch.cat([X[:-1], torch.full((1, 4), 30.0)]))
BOTH = ("per_example", "session")


class Square(nn.Module):
    """Of an activation; its slope has no bound."""

    def forward(self, h: Tensor) -> Tensor:
        return 0.1 * h * h


def critic(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return what makes a critic of 4 values, with these layers of 6 between."""
    between = layers or (Square,)
    return lambda: nn.Sequential(nn.Linear(4, 6), *(layer() for layer in between), nn.Linear(6, 1))


def slopes(out: Tensor, x: Tensor, weights: Tensor | None = None) -> Tensor:
    given = torch.ones_like(out) if weights is None else weights
    (found,) = torch.autograd.grad(out, x, given, create_graph=True)
    return found


def asked(at: Callable[[Tensor], Tensor] = lambda x: x, weights: Any = None) -> Callable[[Any, Tensor], Any]:
    """Return a loop that gives the critic's values of a batch, and its gradients at what `at` makes of it."""

    def call(model: Any, x: Tensor) -> Any:
        there = at(x).detach().clone().requires_grad_()
        out = model(there)
        return {"y": model(x), "g": slopes(out, there, None if weights is None else weights(out))}

    return call


def norms(out: Any) -> Tensor:
    return (out["g"].square().sum(1) + 1e-12).sqrt()


def with_penalty(penalty: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Return losses `[B]`: the critic's own value, and ten times a penalty of the norms."""
    return lambda out, target: out["y"].sum(1) + 10 * penalty(norms(out))


def on_gradients(penalty: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    return lambda out, target: out["y"].sum(1) + 10 * penalty(out["g"])


def unit(n: Tensor) -> Tensor:
    return (n - 1) ** 2


def sum_times_mean(model: Any, x: Tensor) -> Any:
    there = x.detach().clone().requires_grad_()
    out = model(there)
    (found,) = torch.autograd.grad(out.sum() * (1 + out.mean().abs().detach()), there, create_graph=True)
    return {"y": model(x), "g": found}


def between(x: Tensor) -> Tensor:
    """Half way to a point that no record decides."""
    return 0.5 * x + 0.5 * torch.randn_like(x)


def leak(name: str, data: dict[str, Any], *, trust: tuple[str, ...] = (), **training: Any) -> Program:
    settings = {"make": critic(), "call": asked(), "loss": with_penalty(unit), **training}
    return leaky(name, data, ways=BOTH, trust=trust, **settings)


def fair(name: str, data: dict[str, Any] = FAR, **training: Any) -> Program:
    settings = {"make": critic(), "call": asked(between), "loss": with_penalty(unit), **training}
    return clean(name, data, ways=BOTH, told=("values read by the loop",), **settings)


LEAKY = (
    leak("the norm of the whole batch's gradient", FAR, loss=on_gradients(lambda g: unit(g.norm()).expand(len(g)))),
    leak("norms about their mean", FAR, loss=with_penalty(lambda n: (n - n.mean()) ** 2)),
    leak("norms about their detached mean", FAR, loss=with_penalty(lambda n: (n - n.detach().mean()) ** 2)),
    leak("the largest norm as the target", FAR, loss=with_penalty(lambda n: (n - n.detach().max()) ** 2)),
    leak("over another record's gradient", FAR, loss=on_gradients(lambda g: unit(g.norm(2, 1)) / g[-1].norm())),
    leak("gradients about their mean", GONE, loss=on_gradients(lambda g: (g - g.mean(0)).square().sum(1))),
    leak("weights from the batch", FAR, call=asked(weights=lambda o: o.abs().mean().detach() * torch.ones_like(o)),
         trust=("not examined",)),
    leak("a sum times the batch's mean", FAR, call=sum_times_mean, trust=("not examined",)),
    leak("asked at the mean of the batch", GONE, call=asked(lambda x: 0.5 * x + 0.5 * x.mean(0))),
    leak("asked between neighbours", FAR, call=asked(lambda x: 0.5 * x + 0.5 * x.mean(0) + 0 * x.roll(1, 0))),
)  # fmt: skip
CLEAN = (
    fair("WGAN-GP"),
    fair("at half of each record, a record less", GONE, call=asked(lambda x: 0.5 * x)),
    fair("the real records (R1)", call=asked(), loss=on_gradients(lambda g: g.square().sum(1))),
    fair("one-sided", loss=with_penalty(lambda n: (n - 1).relu() ** 2)),
    fair("with layer normalisation", make=critic(lambda: nn.LayerNorm(6), nn.Tanh)),
    fair("with group normalisation", make=critic(lambda: nn.GroupNorm(2, 6), nn.GELU)),
    fair("alone", loss=lambda out, target: unit(norms(out)) + 0 * out["y"].sum(1)),
)

KIND = Kind(
    "gradient penalties",
    "the graph of the losses, down to gradients that were asked for as well as to outputs; what the loop makes of "
    "them, again on altered rows",
    "first two batches, secret random steps",
    "gradients of another sum than that of one output, each row counted once: `not examined`",
    (*LEAKY, *CLEAN),
)
