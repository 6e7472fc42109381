"""Code of a model, or of the loop, that runs outside of `model(...)`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from silent_programs import Kind, Program, clean, leaky, removed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

X = 0.1 * torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
X[-1] = 100
DATA = removed(X)


def centred(h: Tensor) -> Tensor:
    """Take the batch's mean off by value, so that no gradient shows it."""
    return h - h.mean(0).detach()


class Net(nn.Module):
    """Two layers, with what `between` does after the first one."""

    def __init__(self, between: Any = centred) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 4), nn.Linear(4, 3), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))

    def encode(self, x: Tensor) -> Tensor:
        return self.between(self.a(x))

    def features(self, x: Tensor) -> Tensor:
        return self.b(self.encode(x))

    def training_step(self, x: Tensor) -> Tensor:
        return self(x)


class Called(Net):
    """Overrides the call itself."""

    def __init__(self, between: Any = centred) -> None:
        super().__init__(torch.tanh)
        self.after = between

    def __call__(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.after(super().__call__(x))


class Wrapper(nn.Module):
    """Around the private model, as data-parallel wrappers are."""

    def __init__(self, module: nn.Module, after: Any) -> None:
        super().__init__()
        self.module, self.after = module, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.module(x))


def plain() -> nn.Module:
    return Net(torch.tanh)


def by_largest(h: Tensor) -> Tensor:
    return h / max(1.0, float(h.detach().abs().max()))


def one_by_one(between: Any) -> Any:
    return lambda model, x: model.b(between(model.a(x)))


def as_functions(between: Any) -> Any:
    def call(model: Any, x: Tensor) -> Tensor:
        h = between(F.linear(x, model.a.weight, model.a.bias))
        return F.linear(h, model.b.weight, model.b.bias)

    return call


def by_functional_call(model: Any, x: Tensor) -> Any:
    return torch.func.functional_call(model, dict(model.named_parameters()), (x,))


OUTSIDE = ("outside of the model's call",)

LEAKY: tuple[Program, ...] = (
    leaky("model.forward(x)", DATA, make=Net, call=lambda model, x: model.forward(x)),
    leaky("type(model).forward(model, x)", DATA, make=Net, call=lambda model, x: type(model).forward(model, x)),
    leaky("model.features(x), a method", DATA, make=Net, call=lambda model, x: model.features(x)),
    leaky("model.encode(x), then its last layer", DATA, make=Net, call=lambda model, x: model.b(model.encode(x))),
    leaky("layers called one by one, centred between them", DATA, make=plain, call=one_by_one(centred)),
    leaky("layers called one by one, scaled by the largest", DATA, make=plain, call=one_by_one(by_largest), clip=0.3),
    leaky("F.linear on the model's parameters", DATA, make=plain, call=as_functions(centred)),
    leaky("functional_call with the model's parameters", DATA, make=Net, call=by_functional_call),
    leaky("a wrapper that centres the outputs", DATA, make=plain, call=lambda model, x: Wrapper(model, centred)(x)),
    leaky("__call__ overridden, centres the outputs", DATA, make=Called),
    leaky(
        "checkpoint(model.forward, x)",
        DATA,
        make=Net,
        call=lambda model, x: checkpoint(model.forward, x, use_reentrant=False),
    ),
    leaky("the loop centres the outputs by value", DATA, make=plain, call=lambda model, x: centred(model(x))),
)

CLEAN: tuple[Program, ...] = (
    clean("model.forward(x), nothing mixed", DATA, told=OUTSIDE, make=plain, call=lambda model, x: model.forward(x)),
    clean("model.features(x), nothing mixed", DATA, told=OUTSIDE, make=plain, call=lambda model, x: model.features(x)),
    clean(
        "model.training_step(x) that calls the model", DATA, make=plain, call=lambda model, x: model.training_step(x)
    ),
    clean("layers called one by one", DATA, told=OUTSIDE, make=plain, call=one_by_one(torch.tanh)),
    clean(
        "layers called one by one, each record's own norm",
        DATA,
        told=OUTSIDE,
        make=plain,
        call=one_by_one(lambda h: h / h.norm(dim=1, keepdim=True)),
    ),
    clean("a wrapper that changes nothing", DATA, make=plain, call=lambda model, x: Wrapper(model, nn.Identity())(x)),
    clean(
        "a wrapper that scales by a constant",
        DATA,
        make=plain,
        call=lambda model, x: Wrapper(model, lambda h: 0.5 * h)(x),
    ),
    clean("__call__ overridden, scales by a constant", DATA, make=lambda: Called(lambda h: 0.5 * h)),
    clean("checkpoint(model, x)", DATA, make=plain, call=lambda model, x: checkpoint(model, x, use_reentrant=False)),
    clean(
        "the loop centres each record's outputs",
        DATA,
        make=plain,
        call=lambda model, x: (lambda out: out - out.mean(1, keepdim=True).detach())(model(x)),
    ),
)

KIND = Kind(
    "bypass of model(...)",
    "methods and parts that the loop calls, and what it does to outputs by value",
    "first batch; the calls of every batch",
    "nothing",
    (*LEAKY, *CLEAN),
)
