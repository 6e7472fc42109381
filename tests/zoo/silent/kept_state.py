"""What a forward keeps of one batch and reads in a later one."""

from __future__ import annotations

import array
import collections
import enum
import functools
import itertools
import types
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from silent_programs import Kind, clean, leaky, replaced
from torch import Tensor, nn

COUNT = 8
X = 0.5 * torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1))
TWICE = torch.cat([X, X])
DATA = replaced(TWICE, COUNT - 1, torch.full((4,), 1e4), earlier=True)

GLOBAL: dict[str, float] = {"v": 1.0}
START = 1.0


def largest(h: Tensor) -> float:
    return max(1.0, float(h.detach().abs().max()))


class Keeper(nn.Module):
    """Divides by what it kept, then keeps something of the batch; `read` and `write` say how."""

    def __init__(self, start: Any, read: Any, write: Any) -> None:
        super().__init__()
        self.a, self.read, self.write = nn.Linear(4, 3), read, write
        self.v = start

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        out = h / float(self.read(self))
        self.write(self, largest(h))
        return out


def in_attribute(convert: Any) -> Any:
    """Keep `convert(value)` in an attribute, and read it by float()."""
    return lambda keep: Keeper(
        convert(START), lambda s: float(s.v), lambda s, value: setattr(s, "v", convert(keep(value)))
    )


class Slotted:
    __slots__ = ("v",)

    def __init__(self) -> None:
        self.v = START


class OnClass(Keeper):
    """Keeps a number in its class."""

    kept = START


class Colour(enum.Enum):
    SMALL, LARGE = 1.0, 7.0


class Deep:
    """A chain of objects."""

    def __init__(self, depth: int) -> None:
        self.v, self.next = START, Deep(depth - 1) if depth else None


def bottom(top: Any) -> Any:
    while top.next is not None:
        top = top.next
    return top


def in_closure(keep: Any) -> nn.Module:
    held = START

    def read(_: Any) -> float:
        return held

    def write(_: Any, value: float) -> None:
        nonlocal held
        held = keep(value)

    return Keeper(None, read, write)


def in_class(keep: Any) -> nn.Module:
    OnClass.kept = START
    return OnClass(None, lambda s: OnClass.kept, lambda s, value: setattr(OnClass, "kept", keep(value)))


def in_global(keep: Any) -> nn.Module:
    GLOBAL["v"] = START
    return Keeper(None, lambda s: GLOBAL["v"], lambda s, value: GLOBAL.update(v=keep(value)))


def in_slots(keep: Any) -> nn.Module:
    return Keeper(Slotted(), lambda s: s.v.v, lambda s, value: setattr(s.v, "v", keep(value)))


def in_namespace(keep: Any) -> nn.Module:
    return Keeper(types.SimpleNamespace(v=START), lambda s: s.v.v, lambda s, value: setattr(s.v, "v", keep(value)))


def in_depth(keep: Any) -> nn.Module:
    return Keeper(Deep(8), lambda s: bottom(s.v).v, lambda s, value: setattr(bottom(s.v), "v", keep(value)))


def in_keys(keep: Any) -> nn.Module:
    return Keeper({START: None}, lambda s: next(iter(s.v)), lambda s, value: setattr(s, "v", {keep(value): None}))


def in_set(keep: Any) -> nn.Module:
    return Keeper({START}, lambda s: max(s.v), lambda s, value: s.v.add(keep(value)))


def in_partial(keep: Any) -> nn.Module:
    return Keeper(
        functools.partial(float, START),
        lambda s: s.v(),
        lambda s, value: setattr(s, "v", functools.partial(float, keep(value))),
    )


def in_function(keep: Any) -> nn.Module:
    def held() -> None:
        """Holds an attribute."""

    held.v = START  # type: ignore[attr-defined]
    return Keeper(held, lambda s: s.v.v, lambda s, value: setattr(s.v, "v", keep(value)))


def in_default(keep: Any) -> nn.Module:
    def read(_: Any, held: list[float] = [START]) -> float:  # noqa: B006
        return held[0]

    return Keeper(None, read, lambda s, value: read.__defaults__[0].__setitem__(0, keep(value)))  # type: ignore[index]


def in_generator(keep: Any) -> nn.Module:
    def held() -> Any:
        value = START
        while True:
            value = (yield value) or value

    values = held()
    next(values)
    return Keeper(values, lambda s: s.v.send(None), lambda s, value: s.v.send(keep(value)))


def in_iterator(keep: Any) -> nn.Module:
    return Keeper(
        itertools.repeat(START), lambda s: next(s.v), lambda s, value: setattr(s, "v", itertools.repeat(keep(value)))
    )


def in_array(keep: Any) -> nn.Module:
    return Keeper(array.array("d", [START]), lambda s: s.v[0], lambda s, value: s.v.__setitem__(0, keep(value)))


def in_deque(keep: Any) -> nn.Module:
    return Keeper(collections.deque([(START,)]), lambda s: s.v[-1][0], lambda s, value: s.v.append((keep(value),)))


def in_frozen(dtype: torch.dtype) -> Any:
    def make(keep: Any) -> nn.Module:
        model = Keeper(None, lambda s: abs(complex(s.frozen[0])), lambda s, value: s.frozen.data.fill_(keep(value)))
        model.frozen = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
        return model

    return make


def in_order(keep: Any) -> nn.Module:
    """A frozen parameter of which only the order of the values changes."""
    model = Keeper(
        None, lambda s: s.frozen[0], lambda s, value: s.frozen.data.copy_(s.frozen.sort(descending=keep(value) > 2)[0])
    )
    model.frozen = nn.Parameter(torch.tensor([1.0, 2.0, 7.0]), requires_grad=False)
    return model


class Late(nn.Module):
    """Reads what it keeps from the sixth batch on."""

    def __init__(self, keep: Any) -> None:
        super().__init__()
        self.a, self.calls, self.v, self.keep = nn.Linear(4, 3), 0, "1.0", keep

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.a(x)
        out = h / float(self.v) if self.calls > 6 else h
        self.v = str(max(float(self.v), self.keep(largest(h))))
        return out


class Running:
    """A collate function that divides by the largest value so far; `reset` makes it forget."""

    def __init__(self, keep: Any) -> None:
        self.keep, self.largest = keep, START

    def __call__(self, records: Any) -> Tensor:
        x = torch.stack(list(records))
        self.largest = max(self.largest, self.keep(largest(x)))
        return x / self.largest

    def reset(self) -> None:
        self.largest = START


class Reused:
    """A collate function that fills one buffer again and again, and counts; the leaky one shows the last batch, too."""

    def __init__(self, keep: Any) -> None:
        self.keep = keep
        self.reset()

    def __call__(self, records: Any) -> Tensor:
        self.calls += 1
        rows = self.buffer[: len(records)]
        before = self.keep(rows.clone())
        torch.stack(list(records), out=rows)
        return rows - before if isinstance(before, Tensor) else rows - 0.5

    def reset(self) -> None:
        self.calls, self.buffer = 0, torch.zeros(COUNT, 4)


def with_collate(collate: Any) -> dict[str, Any]:
    """A linear model, whose making resets the collate function."""

    def make() -> nn.Module:
        collate.reset()
        return nn.Linear(4, 3)

    return {"make": make, "collate": collate, "batches": 2, "ways": ("session",)}


WAYS: dict[str, Any] = {
    "a str": in_attribute(str),
    "bytes": in_attribute(lambda v: str(v).encode()),
    "a np.float32": in_attribute(np.float32),
    "a np.int64": in_attribute(np.int64),
    "a Fraction": in_attribute(Fraction),
    "a Decimal": in_attribute(Decimal),
    "a complex number": lambda keep: Keeper(
        1 + 0j, lambda s: s.v.real, lambda s, value: setattr(s, "v", complex(keep(value)))
    ),
    "an enum": lambda keep: Keeper(
        Colour.SMALL,
        lambda s: s.v.value,
        lambda s, value: setattr(s, "v", Colour.LARGE if keep(value) > 2 else Colour.SMALL),
    ),
    "a tuple of str": lambda keep: Keeper(
        ("1.0",), lambda s: float(s.v[0]), lambda s, value: setattr(s, "v", (str(keep(value)),))
    ),
    "a range": lambda keep: Keeper(
        range(1), lambda s: len(s.v), lambda s, value: setattr(s, "v", range(int(keep(value))))
    ),
    "keys of a dict": in_keys,
    "a set": in_set,
    "a partial": in_partial,
    "a closure": in_closure,
    "a function's attribute": in_function,
    "a function's default": in_default,
    "a generator": in_generator,
    "an iterator": in_iterator,
    "slots": in_slots,
    "a namespace": in_namespace,
    "a class": in_class,
    "a global": in_global,
    "eight levels deep": in_depth,
    "an array": in_array,
    "a deque of tuples": in_deque,
    "a frozen complex parameter": in_frozen(torch.complex64),
    "a frozen parameter, permuted": in_order,
}


def programs() -> Any:
    for name, make in WAYS.items():

        def of_data(make: Any = make) -> nn.Module:
            return make(lambda value: value)

        def of_nothing(make: Any = make) -> nn.Module:
            return make(lambda value: 3.0)

        trust = ("not examined",) if name == "an iterator" else ()
        yield leaky(name, DATA, make=of_data, batches=2, ways=("session",), trust=trust)
        yield clean(f"{name}, of a constant", DATA, make=of_nothing, batches=2, ways=("session",))
    for name, kind in (("a number of collate_fn's", Running), ("a buffer of collate_fn's", Reused)):
        yield leaky(name, DATA, **with_collate(kind(lambda value: value)))
        yield clean(f"{name}, of a constant", DATA, **with_collate(kind(lambda value: 3.0)))
    many = replaced(X.repeat(8, 1), COUNT - 1, torch.full((4,), 1e4), earlier=True)
    yield leaky("a str, read from the seventh batch on", many, make=lambda: Late(lambda v: v), batches=8)
    yield clean(
        "a str of a constant, read from the seventh batch on", many, make=lambda: Late(lambda v: 3.0), batches=8
    )


KIND = Kind(
    "kept state",
    "all that a forward can change and read again: by value, wherever it lies",
    "first batch",
    "what lies outside of this process; iterators without a readable place are said (`not examined`)",
    tuple(programs()),
)
