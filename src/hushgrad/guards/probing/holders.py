"""What holds the state of a model and can be written to: how its content is read, compared and given back."""

from __future__ import annotations

import gc
import inspect
import operator
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextvars import ContextVar
from types import FunctionType, MemberDescriptorType
from typing import Any

from hushgrad.guards.probing.user_code import Namespace

_EMPTY = object()


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


Partial = (Namespace, Variables, Slots, Cache, Context)


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
    return (
        name.startswith("__")
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
