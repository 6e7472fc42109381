"""Examples that meet in gradients alone: hooks, custom functions, detached factors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from silent_programs import Kind, Program, clean, leaky, linear, made, removed, replaced
from torch import Tensor, nn

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
FAR = replaced(X, -1, torch.full((4,), 1e4))
Y = X.clone()
Y[-1] = 1e3
GONE = removed(Y)
TURNED = replaced(Y, -1, -Y[-1])


def hundredfold(out: Tensor, target: Tensor) -> Tensor:
    return 100 * out.square().sum(1)


def bent(h: Tensor) -> Tensor:
    return F.leaky_relu(h, 0.5)


def with_hook(f: Any) -> Any:
    """Hang a hook on an activation."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m[0](x) * 1.0
        if h.requires_grad:
            h.register_hook(f)
        return m[1](bent(h))

    return made(forward, linear(), linear(3, 2))


def on_outputs(f: Any) -> Any:
    """Hang a hook on what the model returned."""

    def call(model: Any, x: Tensor) -> Any:
        out = model(x) * 1.0
        out.register_hook(f)
        return out

    return call


def halved(model: Any, x: Tensor) -> Any:
    """Hang a hook on the very tensor that the model returned."""
    out = model(x)
    out.register_hook(lambda g: g * 0.5)
    return out


def two() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(0.5), nn.Linear(3, 2))


def with_module_hook(f: Any, before: bool = False) -> Any:
    def make() -> nn.Module:
        model = two()
        if before:
            model[1].register_full_backward_pre_hook(lambda module, out: (f(out[0]),))  # type: ignore[index]
        else:
            model[1].register_full_backward_hook(lambda module, into, out: (f(into[0]),))  # type: ignore[index]
        return model

    return make


def function(f: Any) -> Any:
    """A custom function: the identity, with `f` on its gradient."""

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, h: Tensor) -> Tensor:
            return h.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return f(g)

    return Own.apply


def in_the_middle(f: Any) -> Any:
    own = function(f)
    return made(lambda m, x: m[1](bent(own(m[0](x)))), linear(), linear(3, 2))


def at_the_end(f: Any) -> Any:
    own = function(f)
    return made(lambda m, x: own(m[1](bent(m[0](x)))), linear(), linear(3, 2))


def to_norm_ten(g: Tensor) -> Tensor:
    return g * min(1.0, 10 / max(1e-9, float(g.norm())))


def to_unit(g: Tensor) -> Tensor:
    return g / max(1e-9, float(g.norm()))


def centred_if_many(g: Tensor) -> Tensor:
    return g - g.mean(0) if len(g) > 4 else g


def centred_if_large(g: Tensor) -> Tensor:
    return g - g.mean(0) if float(g.norm()) > 100 else g


def rolled(g: Tensor) -> Tensor:
    return g.roll(1, 0) if len(g) > 4 else g


def own_unit(g: Tensor) -> Tensor:
    return g / g.norm(dim=1, keepdim=True).clamp(min=1e-9)


def own_to_ten(g: Tensor) -> Tensor:
    return g * (10 / g.norm(dim=1, keepdim=True).clamp(min=1e-9)).clamp(max=1)


def by_detached_norm(whole: bool) -> Any:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m[0](x)
        norm = h.detach().norm() if whole else h.detach().norm(dim=1, keepdim=True)
        return m[1]((h / norm.clamp(min=1e-9)).tanh())

    return made(forward, linear(), linear(3, 2))


def straight_through(whole: bool) -> Any:
    """Values of the record alone; the factor of the gradient follows the batch if `whole`."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m[0](x)
        size = h.detach().abs()
        factor = 1 / (size.amax() if whole else size.amax(1, keepdim=True)).clamp(min=1e-9)
        soft = h * factor
        return m[1]((h.detach() + soft - soft.detach()).tanh())

    return made(forward, linear(), linear(3, 2))


LEAKY: tuple[Program, ...] = (
    leaky("hook: the batch's gradient to norm 10", GONE, make=with_hook(to_norm_ten), loss=hundredfold, by_hand=False),
    leaky("hook: centred if more than 4 examples", GONE, make=with_hook(centred_if_many), by_hand=False),
    leaky(
        "hook: centred if the norm is large", GONE, make=with_hook(centred_if_large), loss=hundredfold, by_hand=False
    ),
    leaky("hook: rows rolled by one", TURNED, make=with_hook(rolled), by_hand=False),
    leaky(
        "hook on the outputs: the batch's gradient to norm 1",
        GONE,
        make=two,
        call=on_outputs(to_unit),
        by_hand=False,
        clip=0.3,
    ),
    leaky(
        "hook on the outputs: centred if more than 4 examples",
        GONE,
        make=two,
        call=on_outputs(centred_if_many),
        by_hand=False,
    ),
    leaky(
        "module's full backward hook: centred if more than 4",
        GONE,
        make=with_module_hook(centred_if_many),
        by_hand=False,
    ),
    leaky("module's backward pre-hook: rows rolled by one", TURNED, make=with_module_hook(rolled, True), by_hand=False),
    leaky(
        "custom function in the middle: centred if more than 4",
        GONE,
        make=in_the_middle(centred_if_many),
        by_hand=False,
    ),
    leaky("custom function at the end: centred if more than 4", GONE, make=at_the_end(centred_if_many), by_hand=False),
    leaky(
        "custom function at the end: the batch's gradient to norm 1",
        GONE,
        make=at_the_end(to_unit),
        clip=0.3,
        by_hand=False,
    ),
    leaky(
        "custom function: centred if the norm is large",
        GONE,
        make=in_the_middle(centred_if_large),
        loss=hundredfold,
        by_hand=False,
    ),
    leaky("divided by the batch's norm, detached", GONE, make=by_detached_norm(True)),
    leaky("straight-through with a factor of the batch", GONE, make=straight_through(True)),
)

CLEAN: tuple[Program, ...] = (
    clean("hook: each record's gradient to norm 10", FAR, make=with_hook(own_to_ten), loss=hundredfold, clip=1.0),
    clean("hook: each record's gradient to norm 1", TURNED, make=with_hook(own_unit)),
    clean("hook: a constant factor", GONE, make=with_hook(lambda g: 0.5 * g)),
    clean("hook on the outputs that looks", GONE, make=two, call=on_outputs(lambda g: None)),
    clean("hook on the outputs: a half", GONE, make=two, call=halved),
    clean(
        "module's full backward hook that looks",
        GONE,
        make=lambda: (lambda m: (m[1].register_full_backward_hook(lambda *_: None), m)[1])(two()),
    ),
    clean("custom function in the middle: reversed", GONE, make=in_the_middle(lambda g: -g)),
    clean("custom function at the end: reversed", GONE, make=at_the_end(lambda g: -g)),
    clean("custom function: values clamped", GONE, make=in_the_middle(lambda g: g.clamp(-1, 1))),
    clean("custom function: each record's gradient to norm 1", TURNED, make=in_the_middle(own_unit)),
    clean("divided by the record's own norm, detached", GONE, make=by_detached_norm(False)),
    clean("straight-through with a factor of the record", GONE, make=straight_through(False)),
)

KIND = Kind(
    "gradients alone",
    "the captured gradient of an example against its gradient alone, from the loop's own output gradients and all rows",
    "first batch",
    "nothing",
    (*LEAKY, *CLEAN),
)
