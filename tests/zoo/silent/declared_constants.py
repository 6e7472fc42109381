"""Tensors that a model is given beside its batch: constants that were declared, and what has their shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from silent_programs import Kind, Program, clean, leaky, linear, made, removed
from torch import Tensor, nn

COUNT = 10
WAYS = ("per_example",)
DECLARED = "declared public"

SPREAD = torch.ones(COUNT, 4)
SPREAD[-1] = -100  # turns the sign of every mean
ROWS = removed(SPREAD)
SEQUENCES = removed(torch.randn(COUNT, 5, 4, generator=torch.Generator().manual_seed(0)))

SCALED = made(lambda m, x, scale: m[0](x) * scale, linear())
COMPARED = made(lambda m, x, features: m[0](x) @ features.T, linear())
ATTENDING = made(
    lambda m, x, mask: m[0](x, x, x, attn_mask=mask)[0], lambda: nn.MultiheadAttention(4, 2, batch_first=True)
)


class Holder:
    """What the loop keeps: a tensor, declared if the loop is private."""

    def __init__(self, tensor: Tensor) -> None:
        self.first, self.tensor = tensor, tensor
        self.session: Any = None

    def hand(self, model: Any, parts: Mapping[str, Any]) -> None:
        self.session = parts["session"]
        self.tensor = self.public(self.first.clone())

    def public(self, tensor: Tensor) -> Tensor:
        """Declare; a step by hand has no session."""
        declare: Callable[[Tensor], Tensor] = getattr(self.session, "public", lambda given: given)
        return declare(tensor)


def means(x: Tensor) -> Tensor:
    return x.mean(0)[:3]


def class_means(x: Tensor, classes: int) -> Tensor:
    return torch.stack([x[number % 2 :: 2].mean(0)[:3] for number in range(classes)])


def total(out: Tensor, target: Tensor) -> Tensor:
    """Losses whose gradients have the sign of the outputs' factors."""
    return out.flatten(1).sum(1)


def in_the_item(holder: Holder) -> Any:
    return lambda model, x: model(x, holder.public(means(x)))


def written(holder: Holder, write: Callable[[Tensor, Tensor], Any]) -> Any:
    def call(model: Any, x: Tensor) -> Any:
        write(holder.tensor, means(x))
        return model(x, holder.tensor)

    return call


def by_numpy(tensor: Tensor, values: Tensor) -> None:
    tensor.numpy()[:] = values.numpy()


def held(name: str, make: Any, tensor: Tensor, call: Callable[[Holder], Any], data: Any = ROWS) -> Program:
    holder = Holder(tensor)
    return leaky(name, data, make=make, loss=total, call=call(holder), hand=holder.hand, ways=WAYS)


LEAKY: tuple[Program, ...] = (
    leaky(
        "class means as features", ROWS, make=COMPARED, loss=total, ways=WAYS,
        call=lambda m, x: m(x, class_means(x, 4)),
    ),
    leaky(
        "as many class means as records", ROWS, make=COMPARED, loss=total, ways=WAYS,
        call=lambda m, x: m(x, class_means(x, len(x))),
    ),
    leaky(
        "counted weights of classes", ROWS, make=SCALED, loss=total, ways=WAYS,
        call=lambda m, x: m(x, 1 - 2 * (x < 0).sum(0)[:3]),
    ),
    held("means declared in the item", SCALED, torch.ones(3), in_the_item),
    held("means written into a declared tensor", SCALED, torch.ones(3), lambda h: written(h, Tensor.copy_)),
    held(
        "means written through .data", SCALED, torch.ones(3), lambda h: written(h, lambda t, v: t.data.copy_(v))
    ),
    held("means written through NumPy", SCALED, torch.ones(3), lambda h: written(h, by_numpy)),
    held(
        "a copy of a declared tensor, times the means", SCALED, torch.ones(3),
        lambda h: lambda model, x: model(x, h.tensor * means(x)),
    ),
)  # fmt: skip


def constant(name: str, make: Any, tensor: Tensor, data: Any = ROWS, **training: Any) -> Program:
    holder = Holder(tensor)
    training = {"call": lambda model, x: model(x, holder.tensor), **training}
    return clean(name, data, make=make, hand=holder.hand, ways=WAYS, told=(DECLARED,), **training)


def causal(length: int) -> Tensor:
    return torch.triu(torch.full((length, length), -torch.inf), 1)


def in_a_dictionary() -> Program:
    holder, make = Holder(torch.tensor([1.0, 2, 3])), made(lambda m, x, given: m[0](x) * given["w"], linear())
    return clean(
        "in a dictionary",
        ROWS,
        make=make,
        call=lambda model, x: model(x, {"w": holder.tensor}),
        hand=holder.hand,
        ways=WAYS,
        told=(DECLARED,),
    )


CLEAN: tuple[Program, ...] = (
    constant("a causal mask", ATTENDING, causal(5), SEQUENCES),
    constant(
        "as many positions as records", ATTENDING, causal(COUNT),
        {**SEQUENCES, **{key: [row.repeat(2, 1) for row in SEQUENCES[key]] for key in ("records", "others")}},
    ),
    constant("features of classes", COMPARED, torch.eye(4)[:, :3]),
    constant("as many classes as records", COMPARED, torch.ones(COUNT, 3)),
    constant("weights of classes", SCALED, torch.tensor([1.0, 2, 3])),
    in_a_dictionary(),
    clean(
        "a buffer needs no declaration", ROWS, ways=WAYS,
        make=made(lambda m, x: m[0](x) * torch.tensor([1.0, 2, 3]), linear()),
    ),
)  # fmt: skip

KIND = Kind(
    "constants handed to the model",
    "inputs without a row for each record: declared before the first batch (`session.public`) and unchanged since, or "
    "refused",
    "every forward and step",
    "that what was declared holds nothing of the records: `declared public` is stated",
    (*LEAKY, *CLEAN),
)
