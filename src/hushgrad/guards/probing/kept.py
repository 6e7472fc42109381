"""What a model keeps between two forwards beside parameters, and what holds it: how to read it and to refill it."""

from __future__ import annotations

import inspect
import operator
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad.torch_internals import REGISTERED, buffers_of

DEPTH = 4
"""How deep into nested attributes state is looked for."""

INTERNAL = frozenset(vars(nn.Module())) - {"training"}
"""What torch keeps on every module: its dictionaries of parameters, submodules and hooks."""

STRUCTURE = sorted(INTERNAL - set(REGISTERED))
"""What says which code runs in a forward."""

OPAQUE = (
    nn.Module,
    nn.Parameter,
    DataLoader,  # the loop's own, as are its workers and queues
    type,
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    ModuleType,
    str,
    bytes,
)

OWN, TORCH = __name__.partition(".")[0], torch.__name__

Key = tuple[Any, ...]
Cell = tuple[Key, Any]


def kept_by(model: nn.Module) -> tuple[list[Cell], list[Any], list[Any]]:
    """Return `(place, value)` of each tensor, number or generator that a model keeps, what holds them, and the rest.

    Holders are dictionaries (those of objects included), lists, deques, sets and classes. Each is looked into once, the
    nearest first. The rest are objects of this library, which are no state of the model.
    """
    cells: list[Cell] = []
    holders: list[Any] = []
    own_objects: list[Any] = []
    seen: set[int] = set()
    waiting: deque[tuple[Key, Any, int]] = deque()
    classes: dict[type, None] = {}
    for prefix, module in model.named_modules():
        names = tuple(prefix.split(".")) if prefix else ()
        own = vars(module)
        holders += [own, *(own[name] for name in REGISTERED if isinstance(own.get(name), (dict, set)))]
        cells += [
            (("buffer", *names, name), buffer) for name, buffer in buffers_of(module).items() if buffer is not None
        ]
        waiting += [
            (("attribute", *names, name), value, DEPTH)
            for name, value in own.items()
            if name not in INTERNAL and name != "training"
        ]
        classes.update(dict.fromkeys(type(module).__mro__))
    for cls in classes:
        if cls is not object and cls.__module__.partition(".")[0] not in (OWN, TORCH):
            holders.append(cls)
            waiting += [(("class", cls, name), value, DEPTH) for name, value in content_of(cls).items()]
    while waiting:
        key, value, depth = waiting.popleft()
        if isinstance(value, (bool, int, float, complex)):
            cells.append((key, value))
        elif id(value) in seen:
            continue
        elif isinstance(value, (Tensor, np.ndarray, torch.Generator)) and not isinstance(value, nn.Parameter):
            seen.add(id(value))
            cells.append((key, value))
        elif isinstance(value, (*OPAQUE, Tensor)):
            continue
        elif _is_own(value):
            own_objects.append(value)
        elif depth:
            seen.add(id(value))
            holder, parts = _inside(value)
            if holder is not None:
                holders.append(holder)
            waiting += [((*key, name), part, depth - 1) for name, part in parts]
    return cells, holders, own_objects


def _is_own(value: Any) -> bool:
    """Whether an object is one of this library's: a session, an engine, a criterion. One of a subclass is not."""
    return type(value).__module__.partition(".")[0] == OWN


def _inside(value: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return what can be written to of a value, and its parts by name."""
    if isinstance(value, dict):
        return value, list(content_of(value).items())
    if isinstance(value, (list, deque)):
        return value, list(enumerate(value))
    if isinstance(value, set):
        return value, []
    if isinstance(value, tuple):
        return None, list(enumerate(value))
    try:
        own = vars(value)
    except TypeError:
        return None, []
    return (own, list(own.items())) if isinstance(own, dict) else (None, [])


def structure_of(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """Yield the dictionaries of parts, parameters and hooks of modules."""
    for module in modules:
        own = vars(module)
        for name in STRUCTURE:
            holder = own.get(name)
            if isinstance(holder, (dict, set)):
                yield holder


def content_of(holder: Any) -> Any:
    """Return what is in a holder, as a dictionary or a list."""
    if isinstance(holder, type):
        return {name: value for name, value in vars(holder).items() if not _is_code(name, value)}
    if isinstance(holder, dict):
        return dict(_base(holder).items(holder))
    return list(holder)


def _is_code(name: str, value: Any) -> bool:
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
    if isinstance(holder, type):
        holder = content_of(holder)
    if len(holder) != len(content):
        return False
    if isinstance(content, dict) and not all(map(operator.is_, holder.values(), content.values())):
        return False
    return all(map(operator.is_, holder, content))


def refill(holder: Any, content: Any) -> None:
    """Give a holder its content back; it stays the same object, which handles of hooks know."""
    if isinstance(holder, type):
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
