"""What runs a program and is no state of a model: threads, pools, loops, locks, loggers, loaders, this library's own.

Such an object changes with time and not with the data, other threads work with it while it is looked at, and much of it
cannot be put back. So of these only is looked at what somebody else hung on them, and the few parts that hold values.
"""

from __future__ import annotations

import dis
import threading
import time
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Any

from torch import nn

from hushgrad.guards.probing.user_code import OWN, is_users_class
from hushgrad.printable import full_name
from hushgrad.torch_internals import CONTAINERS
from hushgrad.torch_sharding import STATE_CLASS

PATIENCE = 1.0
"""How many seconds are waited, in one look, for what other threads are still computing."""

_WORK = ("_target", "_args", "_kwargs")

VALUES: Mapping[str, tuple[str, ...]] = {
    "asyncio.events.AbstractEventLoop": (),
    "concurrent.futures._base.Executor": (),
    "concurrent.futures._base.Future": ("_state", "_result", "_exception", "_done_callbacks"),
    "logging.Logger": (),
    "logging.Manager": (),
    "multiprocessing.connection._ConnectionBase": (),
    "multiprocessing.context.BaseContext": (),
    "multiprocessing.managers.BaseManager": (),
    "multiprocessing.managers.BaseProxy": (),
    "multiprocessing.pool.ApplyResult": ("_success", "_value"),
    "multiprocessing.pool.Pool": (),
    "multiprocessing.process.BaseProcess": _WORK,
    "multiprocessing.queues.Queue": (),
    "multiprocessing.synchronize.Condition": (),
    "multiprocessing.synchronize.SemLock": (),
    "threading.Condition": (),
    "threading.Thread": _WORK,
    "torch.utils.data.dataloader.DataLoader": (),
    STATE_CLASS: (),
}
"""The attributes that hold values, by class: they are named and not imported, for few programs use them all."""


def _kinds(machine: Any) -> tuple[str, ...]:
    """Return which machinery an object is of, by name."""
    cls: Any = type(machine)
    return _kinds_of(cls)


@lru_cache(maxsize=4096)
def _kinds_of(cls: type) -> tuple[str, ...]:
    return tuple(name for base in cls.__mro__ if (name := full_name(base)) in VALUES)


def is_of_own(value: Any) -> bool:
    """Whether an object is one of this library's: a session, an engine, a criterion. One of a subclass is not."""
    return not isinstance(value, type) and type(value).__module__.partition(".")[0] == OWN


def is_machinery(value: Any) -> bool:
    """Whether an object is one that runs the program."""
    return is_of_own(value) or bool(_kinds(value))


@lru_cache(maxsize=4096)
def names_set_by(cls: type) -> frozenset[str]:
    """Return the attributes that a class and its bases set on their objects, but for those that are the user's."""
    found: set[str] = set()
    for base in cls.__mro__:
        if is_users_class(base):
            continue
        found |= vars(base).get("__annotations__", {}).keys()
        for name, value in vars(base).items():
            if isinstance(value, cached_property):
                found.add(name)
            code = getattr(getattr(value, "fset", value), "__code__", None)
            if code is not None:
                found |= {str(step.argval) for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"}
    if issubclass(cls, nn.Module):
        found |= vars(nn.Module()).keys()
    return frozenset(found)


class Hung:
    """What an object of machinery holds that its classes did not put there, and the parts of it that hold values.

    Args:
        machine: the object.
        values: its attributes, or the parts or buffers that it has as a module.
    """

    def __init__(self, machine: Any, values: dict[str, Any]) -> None:
        self.values = values
        cls: Any = type(machine)
        self._hidden = names_set_by(cls)
        if not (is_to_come(machine) or _has_begun(machine)):
            self._hidden -= {part for name in _kinds(machine) for part in VALUES[name]}

    def content(self) -> dict[str, Any]:
        """Return it by name."""
        return {name: value for name, value in self.values.copy().items() if name not in self._hidden}

    def put(self, content: Mapping[str, Any]) -> None:
        """Give it back."""
        for name in self.content().keys() - content.keys():
            del self.values[name]
        self.values.update(content)


def hung_on(machine: Any) -> Iterator[Hung]:
    """Yield what is hung on an object, as one holder for each dictionary that it has."""
    own = getattr(machine, "__dict__", None)
    if type(own) is dict:
        yield Hung(machine, own)
        if isinstance(machine, nn.Module):
            yield from (Hung(machine, own[name]) for name in CONTAINERS if type(own.get(name)) is dict)


def is_to_come(machine: Any) -> bool:
    """Whether an object has no result yet and another thread may be computing it: it is left alone."""
    asks = [_PROMISES[name] for name in _kinds(machine) if name in _PROMISES]
    return threading.active_count() > 1 and not all(getattr(machine, ask)() for ask in asks)


def await_result(machine: Any, until: float) -> bool:
    """Wait for what is to come, at most until then; return whether nothing is to come any more."""
    while is_to_come(machine):
        if time.monotonic() > until:
            return False
        time.sleep(0.0005)
    return True


_PROMISES = {"concurrent.futures._base.Future": "done", "multiprocessing.pool.ApplyResult": "ready"}


def _has_begun(machine: Any) -> bool:
    """Whether an object is a thread or a process that was started: its work goes when that ends."""
    own = getattr(machine, "__dict__", {})
    return own.get("_ident") is not None or own.get("_popen") is not None
