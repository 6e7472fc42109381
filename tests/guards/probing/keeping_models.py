"""Models and criteria that keep something between two calls, each in another place: of the data, or not."""

from __future__ import annotations

import array
import asyncio
import collections
import contextvars
import datetime
import enum
import functools
import io
import itertools
import logging
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from first_forwards import Body
from torch import Tensor, nn
from torch.utils.data import DataLoader

import hushgrad
from hushgrad import PrivacyEngine

SEEN: list[float] = []
LAST = 1.0
TABLE: dict[Any, Any] = {}
BY_OBJECT: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
OF_THREAD = threading.local()
LOOP = asyncio.new_event_loop()
POOL = ThreadPoolExecutor(1)
OF_CONTEXT: contextvars.ContextVar[float] = contextvars.ContextVar("of_context", default=1.0)


class Level(enum.Enum):
    LOW, HIGH = 1, 2


class Shared:
    kept = 1.0


class Slotted:
    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept = 1.0


class Box:
    def __init__(self, value: Any = 1.0) -> None:
        self.value = value

    def put(self, value: Any) -> None:
        self.value = value


def with_memory(value: float, memory: list[float] = []) -> None:  # noqa: B006
    memory.append(value)


def with_attribute(value: float) -> None:
    with_attribute.kept = value  # type: ignore[attr-defined]


@functools.lru_cache
def first_of(key: str) -> float:
    return float(TABLE.get("now", 1.0))


def result(value: float) -> Future[float]:
    future: Future[float] = Future()
    future.set_result(value)
    return future


def result_of_loop(value: float) -> Any:
    future = LOOP.create_future()
    future.set_result(value)
    return future


def of_context(value: float) -> contextvars.Context:
    context = contextvars.Context()
    context.run(OF_CONTEXT.set, value)
    return context


def closure() -> tuple[Callable[[float], None], Callable[[], float]]:
    kept = 1.0

    def put(value: float) -> None:
        nonlocal kept
        kept = value

    return put, lambda: kept


def write_variable(value: float) -> None:
    global LAST
    LAST = value


class Keeping(Body):
    """Keeps, by what it was told, the largest value of its batch; nothing ever reads it."""

    def __init__(self, setup: Callable[[Any], Any], write: Callable[[Any, float], Any]) -> None:
        super().__init__()
        setup(self)
        self.write = write

    def prepare(self, x: Tensor) -> None:
        self.write(self, float(x.abs().max()))


def sets(**values: Any) -> Callable[[Any], None]:
    return lambda model: [setattr(model, name, value) for name, value in values.items()] and None


def roll(parameter: nn.Parameter, value: float) -> None:
    parameter.data.copy_(torch.arange(8.0).roll(int(1000 * value) % 8))


def deep() -> Any:
    return {"a": [{"b": SimpleNamespace(c=[({"d": [SimpleNamespace(e={"f": 1.0})]},)])}]}


LEAKY: dict[str, tuple[Callable[[Any], Any], Callable[[Any, float], Any]]] = {
    "a text": (sets(v=""), lambda m, x: setattr(m, "v", str(x))),
    "bytes": (sets(v=b""), lambda m, x: setattr(m, "v", str(x).encode())),
    "a NumPy number": (sets(v=np.float32(1)), lambda m, x: setattr(m, "v", np.float32(x))),
    "a fraction": (sets(v=Fraction(1)), lambda m, x: setattr(m, "v", Fraction(x))),
    "a decimal": (sets(v=Decimal(1)), lambda m, x: setattr(m, "v", Decimal(x))),
    "a duration": (sets(v=None), lambda m, x: setattr(m, "v", datetime.timedelta(seconds=x))),
    "one of two": (sets(v=None), lambda m, x: setattr(m, "v", Level.HIGH if x > 20 else Level.LOW)),
    "something or nothing": (sets(v=None), lambda m, x: setattr(m, "v", object() if x > 20 else None)),
    "a frozen set": (sets(v=frozenset()), lambda m, x: setattr(m, "v", frozenset([x]))),
    "a set": (lambda m: setattr(m, "v", {1.0}), lambda m, x: m.v.add(x)),
    "a key": (lambda m: setattr(m, "v", {}), lambda m, x: m.v.update({(x, "max"): None})),
    "an array of numbers": (lambda m: setattr(m, "v", array.array("d", [1.0])), lambda m, x: m.v.append(x)),
    "a text file in memory": (lambda m: setattr(m, "v", io.StringIO()), lambda m, x: m.v.write(f"{x} ")),
    "a queue of one": (lambda m: setattr(m, "v", collections.deque([1.0], 1).append), lambda m, x: m.v(x)),
    "the variable of a closure": (lambda m: setattr(m, "v", closure()), lambda m, x: m.v[0](x)),
    "the arguments of a partial": (sets(v=None), lambda m, x: setattr(m, "v", functools.partial(float, x))),
    "the object of a method": (lambda m: setattr(m, "v", Box().put), lambda m, x: m.v(x)),
    "a slot": (lambda m: setattr(m, "v", Slotted()), lambda m, x: setattr(m.v, "kept", x)),
    "the class of a helper": (lambda m: setattr(m, "v", Shared()), lambda m, x: setattr(Shared, "kept", x)),
    "a list of the file": (sets(), lambda m, x: SEEN.append(x)),
    "a variable of the file": (sets(), lambda m, x: write_variable(x)),
    "a dictionary of the file": (sets(), lambda m, x: TABLE.update({"max": x})),
    "a variable of the thread": (sets(), lambda m, x: setattr(OF_THREAD, "kept", x)),
    "a variable of another thread": (sets(), lambda m, x: POOL.submit(setattr, OF_THREAD, "kept", x).result()),
    "a result": (sets(v=None), lambda m, x: setattr(m, "v", result(x))),
    "a result of a pool": (sets(v=None), lambda m, x: setattr(m, "v", POOL.submit(lambda: (time.sleep(0.01), x)[1]))),
    "a result of a loop": (sets(v=None), lambda m, x: setattr(m, "v", result_of_loop(x))),
    "a queue": (lambda m: setattr(m, "v", queue.Queue()), lambda m, x: m.v.put(x)),
    "an event": (lambda m: setattr(m, "v", threading.Event()), lambda m, x: m.v.set() if x > 20 else m.v.clear()),
    "a thread that has not begun": (
        sets(v=None), lambda m, x: setattr(m, "v", threading.Thread(target=print, args=(x,)))),
    "a record of a log": (sets(v=None), lambda m, x: setattr(m, "v", logging.makeLogRecord({"args": (x,)}))),
    "an exception": (sets(v=None), lambda m, x: setattr(m, "v", ValueError(x))),
    "a view of memory": (sets(v=None), lambda m, x: setattr(m, "v", memoryview(np.array([x])))),
    "a context": (sets(v=None), lambda m, x: setattr(m, "v", of_context(x))),
    "what is iterated over": (sets(v=None), lambda m, x: setattr(m, "v", zip(iter([x]), [0], strict=True))),
    "a parameter in a list": (
        lambda m: setattr(m, "v", [nn.Parameter(torch.ones(1), requires_grad=False)]),
        lambda m, x: m.v[0].data.fill_(x)),
    "hung on an engine": (lambda m: setattr(m, "v", PrivacyEngine()), lambda m, x: setattr(m.v, "kept", x)),
    "hung on a loader": (lambda m: setattr(m, "v", DataLoader([])), lambda m, x: setattr(m.v, "kept", x)),
    "hung on a logger": (lambda m: setattr(m, "v", logging.getLogger("kept")), lambda m, x: setattr(m.v, "kept", x)),
    "hung on a pool": (sets(), lambda m, x: setattr(POOL, "kept", x)),
    "a class of torch": (sets(), lambda m, x: setattr(type(m.head), "kept", x)),
    "a class of hushgrad": (sets(), lambda m, x: setattr(PrivacyEngine, "kept", x)),
    "a module of hushgrad": (sets(), lambda m, x: setattr(hushgrad, "kept", x)),
    "a variable of the context": (sets(), lambda m, x: OF_CONTEXT.set(x)),
    "a dictionary of weak keys": (sets(), lambda m, x: BY_OBJECT.update({m: x})),
    "a variable of a module": (sets(), lambda m, x: setattr(torch, "_of_a_test", x)),
    "a default argument": (sets(), lambda m, x: with_memory(x)),
    "an attribute of a function": (sets(), lambda m, x: with_attribute(x)),
    "an attribute of a parameter": (sets(), lambda m, x: setattr(m.head.weight, "note", x)),
    "deep inside": (lambda m: setattr(m, "v", deep()),
                    lambda m, x: m.v["a"][0]["b"].c[0][0]["d"][0].e.update(f=x)),
    "which of two tensors": (lambda m: setattr(m, "v", [torch.ones(1), torch.zeros(1)]),
                             lambda m, x: setattr(m, "now", m.v[int(x > 20)])),
    "a frozen parameter in another order": (
        lambda m: setattr(m, "v", nn.Parameter(torch.arange(8.0), requires_grad=False)), lambda m, x: roll(m.v, x)),
    "a frozen complex parameter": (
        lambda m: setattr(m, "v", nn.Parameter(torch.ones(1, dtype=torch.cfloat), requires_grad=False)),
        lambda m, x: m.v.data.fill_(complex(1, x))),
    "a cache of the first value": (
        sets(), lambda m, x: (TABLE.update(now=x), first_of("first"), TABLE.pop("now"))),
    "a text beside the time": (lambda m: setattr(m, "v", []), lambda m, x: m.v.append(f"{time.time()} {x}")),
    "a value beside the time": (lambda m: setattr(m, "v", []), lambda m, x: m.v.append((time.time(), x))),
    "a generator's seed": (sets(v=None), lambda m, x: setattr(m, "v", np.random.default_rng(int(1e6 * x)))),
}  # fmt: skip


@functools.lru_cache
def positions(length: int) -> Tensor:
    return torch.linspace(0, 1, length)


class Logged(Body):
    """Counts, times itself, logs, and keeps tables of constants: nothing of its data."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.tag, self.seconds, self.started = "call 0", 0.0, time.time()
        self.log: collections.deque[str] = collections.deque(maxlen=5)
        self.tables: dict[Any, Tensor] = {}
        self.logger = logging.getLogger("model")
        self.act = functools.partial(F.gelu, approximate="tanh")
        self.schedule = iter([1.0, 0.9, 0.8] * 20)
        self.draws, self.own = random.Random(1), np.random.default_rng(1)

    def prepare(self, x: Tensor) -> None:
        SEEN.append(1.0)
        Logged.calls += 1
        self.tag, self.address, self.moment = f"call {Logged.calls}", id(x), datetime.datetime.now()
        self.log.append(f"{time.time():.6f} {self.tag}")
        self.logger.debug("called")
        self.factor = next(self.schedule) + 0.1 * self.draws.random() + 0.1 * self.own.random() + 0.01 * len(SEEN)

    def after(self, out: Tensor) -> Tensor:
        begun = time.perf_counter()
        key = (out.shape[1], str(out.dtype))
        if key not in self.tables:
            self.tables[key] = torch.ones(out.shape[1])
        out = self.act(out * self.tables[key] + positions(out.shape[1])) * self.factor
        self.seconds += time.perf_counter() - begun
        return out


class Machinery(Body):
    """Holds what runs a program, and computes constants ahead and in another thread."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.local, self.lock = ThreadPoolExecutor(1), threading.local(), threading.RLock()
        self.logger, self.ready, self.tasks = logging.getLogger("model"), threading.Condition(), queue.Queue[float]()
        self.loader, self.engine, self.event = DataLoader([1.0]), PrivacyEngine(), threading.Event()
        self.ahead = self.pool.submit(float, 1)

    def scratch(self, shape: torch.Size) -> Tensor:
        if not hasattr(self.local, "ones"):
            self.local.ones = torch.ones(shape)
        return self.local.ones

    def after(self, out: Tensor) -> Tensor:
        factor, self.ahead = self.ahead.result(), self.pool.submit(float, 1)
        self.event.set()
        self.engine.calls = self.loader.calls = getattr(self.engine, "calls", 0) + 1
        with self.lock:
            self.logger.debug("called")
            return out * factor * self.pool.submit(self.scratch, out.shape[1:]).result()


class Cycling(Body):
    """Takes from an iterator that cannot be put back, and that gives the same for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.values = itertools.repeat(2.0)

    def after(self, out: Tensor) -> Tensor:
        return out * next(self.values)
