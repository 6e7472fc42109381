"""What a model is given beside the tensors of a batch, and computes from all of its records."""

from __future__ import annotations

import types
from typing import Any, NamedTuple

import numpy as np
import torch
from silent_programs import Kind, Program, clean, leaky, linear, made, removed
from torch import Tensor, nn

COUNT, WIDTH = 16, 60

LONG = torch.zeros(COUNT, WIDTH, 4)
LONG[:, :4] = 1
LONG[-1] = 1
SIZES = removed(LONG)

SPREAD = torch.ones(COUNT, 4)
SPREAD[:, 0] = 0.01
SPREAD[-1, 0] = 100
ROWS = removed(SPREAD)

OUTSIDE: dict[str, float] = {}


def hung_on(x: Tensor, value: Any) -> Tensor:
    x.mean_of_all = value  # type: ignore[attr-defined]
    return x


class Slots:
    """An object without a dict."""

    __slots__ = ("v",)

    def __init__(self, v: Any) -> None:
        self.v = v


class Parts(NamedTuple):
    x: Tensor
    scale: Tensor


def sizes(x: Tensor) -> list[int]:
    return [WIDTH if float(row[10, 0]) else 4 for row in x]


CUT = made(lambda m, x, n: m[0](x[:, : int(max(n))].mean(1)), linear())
SCALED = made(lambda m, x, s: m[0](x) * s, linear())


def own_mean(m: Any, x: Tensor, n: Any) -> Tensor:
    count = torch.as_tensor(n)[:, None]
    return m[0]((x * (torch.arange(WIDTH) < count)[:, :, None]).sum(1) / count)


class Attribute(nn.Module):
    """Takes a number that the loop has put into an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale = nn.Linear(4, 3), 1.0
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x - self.centre) * self.scale


def by_attribute(scale: Any) -> Any:
    def call(model: Any, x: Tensor) -> Any:
        model.scale = scale(x)
        return model(x)

    return call


def by_buffer(model: Any, x: Tensor) -> Any:
    model.centre.copy_(x.mean(0))
    return model(x)


def by_global(scale: Any) -> Any:
    def call(model: Any, x: Tensor) -> Any:
        OUTSIDE["scale"] = scale(x)
        return model(x)

    return call


def by_numpy(x: Tensor) -> None:
    array = x.numpy()
    array -= array.mean(0)


def by_dlpack(x: Tensor) -> None:
    other = torch.from_dlpack(x)
    other -= other.mean(0)


def by_storage(x: Tensor) -> None:
    other = torch.empty(0).set_(x.untyped_storage(), 0, x.shape)  # type: ignore[call-overload]
    other -= other.mean(0)


def autoencoder(write: Any) -> dict[str, Any]:
    """The forward writes into its input after its use, and the loop takes that for its target."""

    def forward(m: Any, x: Tensor) -> Tensor:
        out = m[0](x.clone())
        write(x)
        return out  # type: ignore[no-any-return]

    return {
        "make": made(forward, linear(4, 4)),
        "targets": lambda x: x,
        "loss": lambda out, target: (out - target).square().sum(1),
    }


READ = ("values read by the loop",)


def leaves_a_target(target: Any) -> Any:
    """Compute outputs of `item["x"]`, and put into the item what the loop is to compare them with."""

    def forward(m: Any, item: dict[str, Tensor]) -> Tensor:
        item["target"] = target(item["x"])
        return m[0](item["x"])  # type: ignore[no-any-return]

    return forward


of_dicts: dict[str, Any] = {
    "collate": lambda records: {"x": torch.stack(list(records))},
    "call": lambda model, item: model(item),
    "targets": lambda item: item["target"],
    "loss": lambda out, target: (out - target).square().sum(1),
}

LEAKY: tuple[Program, ...] = (
    leaky("lengths as a list", SIZES, make=CUT, call=lambda m, x: m(x, sizes(x))),
    leaky("lengths as an array", SIZES, make=CUT, call=lambda m, x: m(x, np.array(sizes(x)))),
    leaky("lengths as a tuple", SIZES, make=CUT, call=lambda m, x: m(x, tuple(sizes(x)))),
    leaky(
        "the largest length as an int",
        SIZES,
        trust=READ,
        call=lambda m, x: m(x, max(sizes(x))),
        make=made(lambda m, x, n: m[0](x[:, :n].mean(1)), linear()),
    ),
    leaky(
        "the largest length by name",
        SIZES,
        trust=READ,
        call=lambda m, x: m(x, longest=max(sizes(x))),
        make=made(lambda m, x, longest: m[0](x[:, :longest].mean(1)), linear()),
    ),
    leaky("a number computed from the batch", ROWS, make=SCALED, call=lambda m, x: m(x, float(x[:, 0].mean()))),
    leaky("a NumPy number computed from the batch", ROWS, make=SCALED, call=lambda m, x: m(x, x[:, 0].numpy().mean())),
    leaky("a tensor of no dimensions", ROWS, make=SCALED, call=lambda m, x: m(x, x[:, 0].mean())),
    leaky(
        "a tensor in a namespace",
        ROWS,
        make=made(lambda m, x, s: m[0](x) * s.v.mean(), linear()),
        call=lambda m, x: m(x, types.SimpleNamespace(v=x[:, 0])),
    ),
    leaky(
        "a tensor that hangs on a tensor",
        ROWS,
        make=made(lambda m, x: m[0](x) * x.mean_of_all, linear()),
        call=lambda m, x: m(hung_on(x, x[:, 0].mean())),
    ),
    leaky(
        "a tensor in slots",
        ROWS,
        make=made(lambda m, x, s: m[0](x) * s.v.mean(), linear()),
        call=lambda m, x: m(x, Slots(x[:, 0])),
    ),
    leaky(
        "a number in a namespace",
        ROWS,
        make=made(lambda m, x, s: m[0](x) * s.v, linear()),
        call=lambda m, x: m(x, types.SimpleNamespace(v=float(x[:, 0].mean()))),
    ),
    leaky(
        "a function that holds the batch",
        ROWS,
        make=made(lambda m, x, f: f(m[0](x)), linear()),
        call=lambda m, x: m(x, lambda h: h * x[:, 0].mean()),
    ),
    leaky(
        "a list of numbers, their mean",
        ROWS,
        make=made(lambda m, x, v: m[0](x) * (sum(v) / len(v)), linear()),
        call=lambda m, x: m(x, x[:, 0].tolist()),
    ),
    leaky(
        "a word chosen by the batch",
        ROWS,
        call=lambda m, x: m(x, "wide" if bool((x > 50).any()) else "narrow"),
        make=made(lambda m, x, mode: m[0](x if mode == "wide" else x.flip(1)), linear()),
    ),
    leaky("an attribute that the loop sets", ROWS, make=Attribute, call=by_attribute(lambda x: float(x[:, 0].mean()))),
    leaky("a buffer that the loop writes", ROWS, make=Attribute, call=by_buffer),
    leaky(
        "a global that the loop sets",
        ROWS,
        make=made(lambda m, x: m[0](x) * OUTSIDE["scale"], linear()),
        call=by_global(lambda x: float(x[:, 0].mean())),
    ),
    leaky("the batch centred before the call", ROWS, make=linear(), call=lambda m, x: m(x - x.mean(0))),
    leaky(
        "a target that the forward puts into the item",
        ROWS,
        trust=("not examined",),
        make=made(leaves_a_target(lambda x: x - x.mean(0)), linear(4, 4)),
        **of_dicts,
    ),
    leaky("the input written by NumPy, and the target", ROWS, **autoencoder(by_numpy)),
    leaky("the input written by DLPack, and the target", ROWS, **autoencoder(by_dlpack)),
    leaky("the input written by its storage, and the target", ROWS, **autoencoder(by_storage)),
)

CLEAN: tuple[Program, ...] = (
    clean(
        "a constant that hangs on a tensor",
        ROWS,
        make=made(lambda m, x: m[0](x) * x.mean_of_all, linear()),
        call=lambda m, x: m(hung_on(x, 2.0)),
        told=("not examined",),
    ),
    clean(
        "lengths as a list, each record's own",
        SIZES,
        told=READ,
        make=made(own_mean, linear()),
        call=lambda m, x: m(x, sizes(x)),
    ),
    clean(
        "lengths as an array, each record's own",
        SIZES,
        told=READ,
        make=made(own_mean, linear()),
        call=lambda m, x: m(x, np.array(sizes(x))),
    ),
    clean(
        "a fixed length as an int",
        SIZES,
        call=lambda m, x: m(x, WIDTH),
        make=made(lambda m, x, n: m[0](x[:, :n].mean(1)), linear()),
    ),
    clean("a fixed number", ROWS, make=SCALED, call=lambda m, x: m(x, 0.5)),
    clean("a fixed tensor of no dimensions", ROWS, make=SCALED, call=lambda m, x: m(x, torch.tensor(0.5))),
    clean(
        "a namespace of settings",
        ROWS,
        make=made(lambda m, x, s: m[0](x) * s.v, linear()),
        call=lambda m, x: m(x, types.SimpleNamespace(v=0.5)),
    ),
    clean(
        "a function that holds nothing",
        ROWS,
        make=made(lambda m, x, f: f(m[0](x)), linear()),
        call=lambda m, x: m(x, torch.tanh),
    ),
    clean(
        "a list of numbers, each record's own",
        ROWS,
        call=lambda m, x: m(x, x[:, 0].tolist()),
        told=READ,
        make=made(lambda m, x, v: m[0](x) * torch.tensor(v)[:, None], linear()),
    ),
    clean(
        "an array of features, each record's own",
        ROWS,
        call=lambda m, x: m(x, x.numpy().copy()),
        told=READ,
        make=made(lambda m, x, v: m[0](x + torch.from_numpy(v)), linear()),
    ),
    clean(
        "a fixed word",
        ROWS,
        call=lambda m, x: m(x, "narrow"),
        make=made(lambda m, x, mode: m[0](x if mode == "wide" else x.flip(1)), linear()),
    ),
    clean(
        "a named tuple, each record's own",
        ROWS,
        call=lambda m, x: m(Parts(x, x[:, :1])),
        make=made(lambda m, p: m[0](p.x) * p.scale, linear()),
    ),
    clean("an attribute that the loop sets to a constant", ROWS, make=Attribute, call=by_attribute(lambda x: 0.5)),
    clean(
        "a global that the loop sets to a constant",
        ROWS,
        call=by_global(lambda x: 0.5),
        make=made(lambda m, x: m[0](x) * OUTSIDE["scale"], linear()),
    ),
    clean("the input read by NumPy, and the target", ROWS, **autoencoder(lambda x: x.numpy().mean(0))),
    clean(
        "the input written by torch, each record's own, and the target",
        ROWS,
        told=("not examined",),
        **autoencoder(lambda x: x.sub_(x.mean(1, keepdim=True))),
    ),
    clean(
        "a target of each record's own that the forward puts into the item",
        ROWS,
        told=("not examined", *READ),
        make=made(leaves_a_target(lambda x: x / 2), linear(4, 4)),
        **of_dicts,
    ),
    clean("fixed statistics before the call", ROWS, make=linear(), call=lambda m, x: m((x - 0.5) / 2)),
)

KIND = Kind(
    "hidden inputs",
    "lists, arrays, numbers and objects that a call is given: altered as tensors are, or refused by name",
    "first batch",
    "numbers that have left torch: `values read by the loop`; tensors that a forward puts into what it was given: "
    "`not examined`",
    (*LEAKY, *CLEAN),
)
