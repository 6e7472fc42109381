"""What holds the state of a model and can be written to: how its content is read, compared and given back."""

from __future__ import annotations

import gc
import inspect
import operator
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from types import FunctionType, MemberDescriptorType
from typing import Any

from hushgrad.guards.probing.machinery import Hung
from hushgrad.guards.probing.state_values import are_alike
from hushgrad.guards.probing.user_code import Namespace

_EMPTY = object()

KEEPING = frozenset({int, float, bool, str, bytes, tuple, list, dict, set, frozenset, type(None)})
"""Types of which every object keeps something, and is no code."""


class Variables:
    """What a function keeps beside its code: the variables of the function around it, and default arguments."""

    def __init__(self, function: FunctionType) -> None:
        self.function = function

    def content(self) -> dict[str, Any]:
        """Return the values by the names of the variables and arguments."""
        function = self.function
        code, defaults = function.__code__, function.__defaults__ or ()
        arguments = code.co_varnames[: code.co_argcount]
        found: dict[str, Any] = dict(zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True))
        found.update(function.__kwdefaults__ or {})
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                found[name] = cell.cell_contents
            except ValueError:
                found[name] = _EMPTY
        return found

    def put(self, content: Mapping[str, Any]) -> None:
        """Give them back what they had."""
        function = self.function
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if content[name] is not _EMPTY:
                cell.cell_contents = content[name]
            elif self.content()[name] is not _EMPTY:
                del cell.cell_contents
        code, count = function.__code__, len(function.__defaults__ or ())
        arguments = code.co_varnames[code.co_argcount - count : code.co_argcount]
        if count and all(name in content for name in arguments):
            function.__defaults__ = tuple(content[name] for name in arguments)


class Slots:
    """The values in the `__slots__` of an object."""

    def __init__(self, value: Any, slots: Mapping[str, MemberDescriptorType]) -> None:
        self.value, self.slots = value, slots

    def content(self) -> dict[str, Any]:
        """Return those that are there, by name."""
        found = {}
        for name, slot in self.slots.items():
            try:
                found[name] = slot.__get__(self.value)
            except AttributeError:
                continue
        return found

    def put(self, content: Mapping[str, Any]) -> None:
        """Give them back what they had."""
        for name in self.content().keys() - content.keys():
            self.slots[name].__delete__(self.value)
        for name, value in content.items():
            self.slots[name].__set__(self.value, value)


class OfClass:
    """The attributes of a class of somebody else's that the user's code names: what it may have set there.

    Args:
        cls: the class.
        names: of attributes, there or not: what is not there yet may come.
    """

    def __init__(self, cls: type, names: frozenset[str]) -> None:
        self.cls, self.names = cls, names

    def content(self) -> dict[str, Any]:
        """Return them by name, without code."""
        own = vars(self.cls)
        return {name: own[name] for name in sorted(self.names & own.keys()) if not is_code(name, own[name])}

    def put(self, content: Mapping[str, Any]) -> None:
        """Give them back what they had."""
        for name in self.content().keys() - content.keys():
            delattr(self.cls, name)
        for name, value in content.items():
            if vars(self.cls).get(name) is not value:
                setattr(self.cls, name, value)


class Cache:
    """What a function under `lru_cache` has kept; it can't be put back, only emptied, which a cache allows."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def content(self) -> dict[str, Any]:
        """Return the calls that missed and the entries, as they are counted."""
        info = self.function.cache_info()
        return {"misses": info.misses, "entries": info.currsize}

    def entries(self) -> list[tuple[Any, Any]]:
        """Return arguments and results, where they can be read."""
        parts = gc.get_referents(self.function)
        count = self.function.cache_info().currsize
        tables = [part for part in parts if type(part) is dict and part is not vars(self.function)]
        kept: dict[Any, Any] = next((table for table in tables if len(table) == count), {})
        if self.function.cache_parameters()["maxsize"] is None:
            return list(kept.items())
        places = {id(part): place for place, part in enumerate(parts)}  # a result follows its arguments
        return [(arguments, parts[places[id(arguments)] + 1]) for arguments in kept if id(arguments) in places]

    def put(self, content: Mapping[str, Any]) -> None:
        """Empty it."""
        self.function.cache_clear()


class Context:
    """The value of a context variable; one that had none keeps None."""

    def __init__(self, variable: ContextVar[Any]) -> None:
        self.variable = variable

    def content(self) -> dict[str, Any]:
        """Return it by its name."""
        return {self.variable.name: self.variable.get(None)}

    def put(self, content: Mapping[str, Any]) -> None:
        """Give it back."""
        self.variable.set(content[self.variable.name])


class OtherThreads:
    """What a `threading.local` holds of other threads than the one that asks: each has a dictionary of its own."""

    def __init__(self, value: threading.local) -> None:
        self.value = value

    def content(self) -> list[dict[str, Any]]:
        """Return the dictionaries that hold anything."""
        mine = vars(self.value)
        return [kept for kept in self._all() or () if kept is not mine and kept]

    def alike(self) -> list[list[dict[str, Any]]]:
        """Return them by what they hold: which thread does which work differs from run to run."""
        found: list[list[dict[str, Any]]] = []
        for kept in self.content():
            same = next((others for others in found if are_alike(others[0], kept)), None)
            if same is None:
                found.append([kept])
            else:
                same.append(kept)
        return found

    def put(self, content: Sequence[dict[str, Any]]) -> None:
        """Empty those that held nothing; what the others hold is theirs to give back."""
        known = set(map(id, content))
        for kept in self.content():
            if id(kept) not in known:
                kept.clear()

    def can_be_read(self) -> bool:
        """Whether they are where Python keeps them: in a dictionary by its threads."""
        return self._all() is not None

    def _all(self) -> list[dict[str, Any]] | None:
        mine = vars(self.value)
        for part in gc.get_referents(self.value):
            found = list(part.values()) if type(part) is dict else []
            if any(kept is mine for kept in found):
                return found
        return None


Partial = (Namespace, Variables, Slots, OfClass, Cache, Context, OtherThreads, Hung)


def slots_of(value: Any) -> dict[str, MemberDescriptorType]:
    """Return the slots that the classes of an object declare in Python."""
    return {
        name: member
        for cls in type(value).__mro__
        if "__slots__" in vars(cls)
        for name, member in vars(cls).items()
        if isinstance(member, MemberDescriptorType)
    }


def content_of(holder: Any) -> Any:
    """Return what is in a holder, as a dictionary or a list."""
    if type(holder) is dict:  # most are
        return holder.copy()
    if isinstance(holder, Partial):
        return holder.content()
    if isinstance(holder, type):
        return {name: value for name, value in vars(holder).items() if not is_code(name, value)}
    if isinstance(holder, dict):
        return dict(_base(holder).items(holder))
    return list(holder)


def is_code(name: str, value: Any) -> bool:
    """Whether an entry of a class says what it does, and not what it keeps."""
    if type(value) in KEEPING:
        return name.startswith("__")
    return (
        name.startswith("__")
        or type(value) is FunctionType  # most are
        or isinstance(value, (type, staticmethod, classmethod))
        or inspect.isroutine(value)
        or inspect.isdatadescriptor(value)
        or inspect.ismethoddescriptor(value)
    )


def _base(holder: dict[Any, Any]) -> Any:
    """Return the class whose methods are used: those of subclasses may refuse (an output of `transformers`)."""
    return OrderedDict if isinstance(holder, OrderedDict) else dict


def is_same(holder: Any, content: Any) -> bool:
    """Whether a holder still has the very objects that it had, in the same order."""
    if type(holder) is not dict:
        if isinstance(holder, Cache):
            return bool(holder.content() == content)
        if isinstance(holder, (type, *Partial)):
            holder = content_of(holder)
    if len(holder) != len(content):
        return False
    if not content:
        return True
    if isinstance(content, dict) and not all(map(operator.is_, holder.values(), content.values())):
        return False
    return all(map(operator.is_, holder, content))


def refill(holder: Any, content: Any) -> None:
    """Give a holder its content back; it stays the same object, which handles of hooks know."""
    if isinstance(holder, Partial):
        holder.put(content)
    elif isinstance(holder, type):
        for name in content_of(holder).keys() - content.keys():
            delattr(holder, name)
        for name, value in content.items():
            if vars(holder).get(name) is not value:
                setattr(holder, name, value)
    elif isinstance(holder, dict):
        base = _base(holder)
        for name in [name for name in content_of(holder) if name not in content]:
            base.__delitem__(holder, name)
        if not all(a is b for a, b in zip(content_of(holder), content, strict=False)):
            base.clear(holder)  # their order counts, for hooks
        for name, value in content.items():
            base.__setitem__(holder, name, value)
    elif isinstance(holder, list):
        list.__setitem__(holder, slice(None), content)
    else:
        holder.clear()
        holder.extend(content) if isinstance(holder, deque) else holder.update(content)
