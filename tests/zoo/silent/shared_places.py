"""Values that get to their place by counting or by memory: through a mask, a window, a repetition, a buffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from silent_programs import Kind, Program, clean, leaky, linear, made, replaced
from torch import Tensor

B, T, D = 6, 4, 3
X = 0.1 * torch.randn(B, T, D, generator=torch.Generator().manual_seed(3))
X[:, 0] = 1.0
X[-1] = 3.0
OTHERS = replaced(X, 0, torch.full((T, D), -2.0))
"""Every record begins with ones, but the other first record, which has no place that is greater than 0.5."""
WAYS = ("session",)


def after(f: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
    """A layer, `f`, and a layer."""
    return made(lambda m, x: m[1](f(m[0](x))), linear(D, D), linear(D, 2))


def beside(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Any]:
    """A layer on the records, `f` of what it gives and the records themselves, and a layer."""
    return made(lambda m, x: m[1](f(m[0](x), x)), linear(D, D), linear(D, 2))


def leak(name: str, make: Callable[[], Any]) -> Program:
    return leaky(name, OTHERS, make=make, ways=WAYS, by_hand=False)


def fine(name: str, make: Callable[[], Any]) -> Program:
    return clean(name, OTHERS, make=make, ways=WAYS)


def filled(h: Tensor, *writes: Callable[[Tensor, Tensor], Any]) -> Tensor:
    """Return a buffer of zeros into which parts of `h` were written."""
    buffer = torch.zeros(len(h), T, D)
    for write in writes:
        write(buffer, h)
    return buffer


def first_place(x: Tensor) -> Tensor:
    return (torch.arange(T) == 0).reshape(1, T, 1).expand_as(x)


WINDOW = (T * D, D, D, 1)
LEAKY: tuple[Program, ...] = (
    leak("values follow a mask that the data decide", beside(lambda h, x: h.masked_scatter(x > 0.5, h.flip(1)))),
    leak(
        "fewer places than values where a record says so",
        beside(lambda h, x: h.masked_scatter((x > 0.5) & first_place(x), h[:, 1])),
    ),
    leak(
        "places in the order of the records' sizes",
        beside(lambda h, x: h.masked_scatter(first_place(x), h[x.sum((1, 2)).argsort(), 0])),
    ),
    leak("values of the next record", beside(lambda h, x: h.masked_scatter(first_place(x), h.roll(1, 0)[:, 0]))),
    leak("windows that reach the next record", after(lambda h: h.flatten().as_strided((len(h), T, D), (9, 6, 1)))),
    leak(
        "windows with the records' own steps exchanged",
        after(lambda h: h.clone().as_strided((len(h), T, D), (D, len(h) * D, 1))),
    ),
    leak("each record as often as it says", beside(lambda h, x: h.repeat_interleave(1 + (x[:, 0, 0] > 9).long(), 0))),
    leak(
        "repeated, and the repetitions taken for records",
        after(lambda h: h.repeat_interleave(2, 0)[: len(h)]),
    ),
    leak(
        "a buffer written along two axes",
        after(lambda h: filled(h, lambda b, h: b.view(-1)[: len(h) * T].copy_(h[..., 0].t().reshape(-1)))),
    ),
    leak(
        "a buffer that holds a mean of the batch",
        after(lambda h: h + filled(h, lambda b, h: b[:1].copy_(h.mean(0))).sum(0)),
    ),
    leak("padded by rows of the batch", after(lambda h: torch.nn.functional.pad(h, (0, 0, 0, 0, 1, -1)))),
)

CLEAN: tuple[Program, ...] = (
    fine("as many places as values in each record", beside(lambda h, x: h.masked_scatter(first_place(x), h[:, 1]))),
    fine(
        "the largest place of each record",
        beside(lambda h, x: h.masked_scatter(torch.arange(T)[:, None] == x.sum(2).argmax(1)[:, None, None], h[:, 1])),
    ),
    fine("windows within each record", after(lambda h: h.clone().as_strided((len(h), 3, 2, D), WINDOW).sum(2))),
    fine("windows that begin at the second place", after(lambda h: h.clone().as_strided((len(h), 3, 1, D), WINDOW, D))),
    fine("turned by its steps", after(lambda h: h.clone().as_strided((len(h), D, T), (T * D, 1, D)).mT)),
    fine("repeated and summed again", after(lambda h: h.repeat_interleave(2, 0).view(len(h), 2, T, D).sum(1))),
    fine(
        "a buffer written in two parts",
        after(
            lambda h: filled(h, lambda b, h: b[..., :1].copy_(h[..., :1]), lambda b, h: b[..., 1:].copy_(h[..., 1:]))
        ),
    ),
    fine("padded behind the batch", after(lambda h: torch.nn.functional.pad(h, (0, 0, 1, 0, 0, 0)))),
)

KIND = Kind(
    "places by count or memory",
    "whose values get to whose places: counted, and looked up in memory of the same layout",
    "every batch",
    "nothing",
    (*LEAKY, *CLEAN),
)
