"""What a forward keeps of one batch and reads in a later one."""

from __future__ import annotations

import array
import asyncio
import collections
import contextvars
import ctypes
import enum
import functools
import itertools
import threading
import types
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from silent_programs import Kind, clean, leaky, replaced
from torch import Tensor, nn

import hushgrad

COUNT = 8
X = 0.5 * torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1))
TWICE = torch.cat([X, X])
LONG = replaced(X.repeat(8, 1), 7 * COUNT - 1, torch.full((4,), 1e4), earlier=True)
"""The record of the seventh batch, for what shows in the eighth."""

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


def in_attribute_of(make: Any, read: Any) -> Any:
    """Keep `make(value)` in an attribute, and read it by `read`."""
    return lambda keep: Keeper(make(START), lambda s: read(s.v), lambda s, value: setattr(s, "v", make(keep(value))))


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


def in_future(keep: Any) -> nn.Module:
    pool = ThreadPoolExecutor(1)
    return Keeper(
        pool.submit(float, START),
        lambda s: s.v.result(),
        lambda s, value: setattr(s, "v", pool.submit(lambda: keep(value))),
    )


def in_asyncio(keep: Any) -> nn.Module:
    loop = asyncio.new_event_loop()

    def future(value: float) -> Any:
        made = loop.create_future()
        made.set_result(value)
        return made

    return Keeper(future(START), lambda s: s.v.result(), lambda s, value: setattr(s, "v", future(keep(value))))


def in_context(keep: Any) -> nn.Module:
    variable: contextvars.ContextVar[float] = contextvars.ContextVar("v")
    context = contextvars.Context()
    context.run(variable.set, START)
    return Keeper(context, lambda s: s.v[variable], lambda s, value: s.v.run(variable.set, keep(value)) and None)


def in_exception(keep: Any) -> nn.Module:
    return Keeper(ValueError(START), lambda s: s.v.args[0], lambda s, value: setattr(s, "v", ValueError(keep(value))))


def in_thread_to_come(keep: Any) -> nn.Module:
    class Work(threading.Thread):
        value = 0.0

        def run(self) -> None:
            self.value = self._args[0]  # type: ignore[attr-defined]

    def read(s: Any) -> float:
        s.v.run()
        return s.v.value

    return Keeper(Work(args=(START,)), read, lambda s, value: setattr(s, "v", Work(args=(keep(value),))))


def in_listed_parameter(keep: Any) -> nn.Module:
    parameter = nn.Parameter(torch.ones(1), requires_grad=False)
    return Keeper([parameter], lambda s: s.v[0], lambda s, value: s.v[0].data.fill_(keep(value)))


def in_torch_class(keep: Any) -> nn.Module:
    nn.Linear.kept_here = START  # type: ignore[attr-defined]
    return Keeper(
        None,
        lambda s: nn.Linear.kept_here,
        lambda s, value: setattr(type(s.a), "kept_here", keep(value)),  # type: ignore[attr-defined]
    )


def in_own_module(keep: Any) -> nn.Module:
    hushgrad.kept_here = START  # type: ignore[attr-defined]
    return Keeper(
        None,
        lambda s: hushgrad.kept_here,
        lambda s, value: setattr(hushgrad, "kept_here", keep(value)),  # type: ignore[attr-defined]
    )


class Hanging(nn.Module):
    """Hangs something of the batch on an object that it was handed, which the loop makes the scale of the next."""

    def __init__(self, keep: Any) -> None:
        super().__init__()
        self.a, self.keep, self.box = nn.Linear(4, 3), keep, [types.SimpleNamespace()]

    def forward(self, x: Tensor) -> Tensor:
        h, box = self.a(x), self.box[0]
        box.latest = self.keep(largest(h))
        return h / box.scale

    def hang_on(self, box: Any) -> None:
        self.box, box.latest = [box], START


def moves_on(model: Any, x: Tensor) -> Tensor:
    model.box[0].scale = model.box[0].latest
    return model(x)


class InAnotherThread(nn.Module):
    """Divides by what a thread of a pool has kept, for itself alone, of the batch before."""

    def __init__(self, keep: Any) -> None:
        super().__init__()
        self.a, self.keep, self.calls = nn.Linear(4, 3), keep, 0
        self.pool, self.local = ThreadPoolExecutor(1), threading.local()

    def scale(self, value: float) -> float:
        kept = vars(self.local).setdefault("kept", {})
        kept[self.calls] = self.keep(value)
        return kept.get(self.calls - 1, START)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.a(x)
        return h / self.pool.submit(self.scale, largest(h)).result()


class Ahead:
    """A criterion that lets a pool work out the centre of the next batch."""

    def __init__(self, keep: Any) -> None:
        self.keep, self.pool = keep, ThreadPoolExecutor(1)
        self.begin()

    def begin(self) -> None:
        self.next = self.pool.submit(float, START)

    def __call__(self, out: Tensor, target: Tensor) -> Tensor:
        centre, seen = self.next.result(), out.detach().clone()
        self.next = self.pool.submit(lambda: self.keep(largest(seen)))
        return (out - centre).square().sum(1)

    def model(self) -> nn.Module:
        self.begin()
        return nn.Linear(4, 3)


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
    "a frozen parameter in a list": in_listed_parameter,
    "a future of a pool": in_future,
    "a future of asyncio": in_asyncio,
    "a context": in_context,
    "an exception": in_exception,
    "a thread that has not begun": in_thread_to_come,
    "a number of ctypes": lambda keep: Keeper(
        ctypes.c_double(START), lambda s: s.v.value, lambda s, value: setattr(s.v, "value", keep(value))
    ),
    "a view of memory": in_attribute_of(lambda v: memoryview(np.array([v])), lambda v: v[0]),
    "what is iterated over": in_attribute_of(lambda v: iter([v]), lambda v: next(v)),
    "what is zipped": in_attribute_of(lambda v: zip([v], strict=True), lambda v: next(v)[0]),
    "a class of torch": in_torch_class,
    "a module of hushgrad": in_own_module,
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
    for name in ("engine", "session", "loader", "data loader", "criterion"):

        def hand(model: Any, trains: Mapping[str, Any], name: str = name) -> None:
            model.hang_on(trains[name])

        hung: dict[str, Any] = {"batches": 8, "call": moves_on, "hand": hand, "ways": ("session",)}
        yield leaky(f"hung on the {name}", LONG, make=lambda: Hanging(lambda value: value), **hung)
        yield clean(f"hung on the {name}, of a constant", LONG, make=lambda: Hanging(lambda value: 3.0), **hung)
    threads: dict[str, Any] = {"batches": 8, "ways": ("session",)}
    thread = "a variable of another thread"
    yield leaky(thread, LONG, make=lambda: InAnotherThread(lambda value: value), **threads)
    yield clean(f"{thread}, of a constant", LONG, make=lambda: InAnotherThread(lambda value: 3.0), **threads)
    ahead, constant = Ahead(lambda value: value), Ahead(lambda value: 3.0)
    criterion: dict[str, Any] = {"batches": 2, "ways": ("per_example",)}
    yield leaky("a future of the criterion", DATA, make=ahead.model, loss=ahead, **criterion)
    yield clean(  # it begins with another number, and so is none for all batches
        "a future of the criterion, of a constant",
        DATA,
        make=constant.model,
        loss=constant,
        told=("losses that change between batches",),
        **criterion,
    )
    many = replaced(X.repeat(8, 1), COUNT - 1, torch.full((4,), 1e4), earlier=True)
    yield leaky("a str, read from the seventh batch on", many, make=lambda: Late(lambda v: v), batches=8)
    yield clean(
        "a str of a constant, read from the seventh batch on", many, make=lambda: Late(lambda v: 3.0), batches=8
    )


class Shifting:
    """A collate function that the loop tells what to take away from records."""

    def __init__(self) -> None:
        self.shift: Any = torch.zeros(4)

    def __call__(self, records: Any) -> Tensor:
        return torch.stack(list(records)) - self.shift  # type: ignore[no-any-return]


def told_by_the_loop(shift: Any) -> dict[str, Any]:
    """Return what trains a linear layer, and sets `shift(x)` for the next batch."""
    shifting = Shifting()

    def make() -> nn.Module:
        shifting.shift = torch.zeros(4)
        return nn.Linear(4, 3)

    def call(model: Any, x: Tensor) -> Any:
        shifting.shift = shift(x)
        return model(x)

    return {"collate": shifting, "make": make, "call": call, "batches": 2}


SET_BY_THE_LOOP = (
    leaky("the loop sets an attribute of collate_fn to the mean", DATA, trust=("losses that change between batches",),
          by_hand=False, **told_by_the_loop(lambda x: x.mean(0))),
    leaky("the loop sets an attribute of collate_fn to a number of the batch", DATA, by_hand=False,
          trust=("losses that change between batches",), **told_by_the_loop(lambda x: float(x.abs().max()))),
    clean("the loop sets an attribute of collate_fn to what it is", DATA,
          **told_by_the_loop(lambda x: torch.zeros(4))),
)  # fmt: skip

KIND = Kind(
    "kept state",
    "all that a forward can change and read again: by value, wherever it lies",
    "first batch, secret random steps",
    "what lies outside of this process; iterators without a readable place are said (`not examined`)",
    (*programs(), *SET_BY_THE_LOOP),
)
