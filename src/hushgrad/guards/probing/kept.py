"""What a model or a criterion keeps between two calls beside parameters, wherever its code can keep it.

That is: buffers and attributes, what is in them however deep, what hooks and methods keep (variables around them,
default arguments, their own attributes), the classes of the model and of its helpers, the variables that the user's
code names, in its files or in modules, and what was hung on the objects that run the program.
"""

from __future__ import annotations

import contextvars
import functools
import gc
import itertools
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import (
    AsyncGeneratorType,
    BuiltinFunctionType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.holders import (
    Cache,
    Context,
    OfClass,
    OtherThreads,
    Slots,
    Variables,
    content_of,
    slots_of,
)
from hushgrad.guards.probing.machinery import PATIENCE, await_result, hung_on, is_machinery, is_of_own
from hushgrad.guards.probing.state_values import ITERATORS, LEAF, is_atom
from hushgrad.guards.probing.user_code import (
    Namespace,
    is_own,
    is_users_class,
    is_users_function,
    is_users_module,
    names_in,
    spaces_of,
)
from hushgrad.printable import full_name
from hushgrad.torch_internals import (
    CONTAINERS,
    REGISTERED,
    buffers_of,
    compiled_from,
    is_compiled,
    own_parameters,
    parameters_of,
)
from hushgrad.torch_sharding import at_rest, is_distributed

DEPTH = 24
"""How deep state is looked for: a step into a container or an object of the user's is one."""

STRANGE = 6
"""What a step into an object of somebody else's class takes of the depth."""

PLACES = 20_000
"""How many values are looked at, at most."""

INTERNAL = frozenset(vars(nn.Module())) - {"training"}
"""What torch keeps on every module: its dictionaries of parameters, submodules and hooks."""

STRUCTURE = sorted(INTERNAL - set(REGISTERED))
"""What says which code runs in a forward."""

HOOKS = [name for name in STRUCTURE if name.endswith("hooks")]

OWN, TORCH = __name__.partition(".")[0], torch.__name__

GLOBAL_RANDOM = (torch.default_generator, np.random.mtrand._rand, sys.modules["random"]._inst)
"""Every run draws from these anew, so they are no state of a model."""

LIBRARIES = frozenset({*sys.stdlib_module_names, TORCH, "numpy"}) - {"__main__"}
"""What their functions keep is no state of a model."""

UNREAD = (
    "_queue.SimpleQueue", "sqlite3.Connection", "mmap.mmap", "itertools.", "builtins.generator", "builtins.coroutine",
    "builtins.async_generator", "multiprocessing.queues.", "multiprocessing.connection.", "multiprocessing.managers.",
)  # fmt: skip
"""What holds values that nobody can read, or put back."""

SHOWN: dict[type, tuple[str, ...]] = {functools.partial: ("func", "args", "keywords"), BaseException: ("args",)}
"""What objects hold beside their attributes in Python."""

PLACELESS = (zip, map, filter)
"""Iterators that have no place but those of what they iterate over."""

FRAMES = {GeneratorType: "gi_frame", CoroutineType: "cr_frame", AsyncGeneratorType: "ag_frame"}

Key = tuple[Any, ...]
Cell = tuple[Key, Any]


class CacheEntry(str):
    """A part of a key: one entry of a cache, by its arguments. That other arguments came is no state.

    So is one more of what is kept once already.
    """


class DictKey(str):
    """A part of a key: a key of a dictionary, which may have come with the data."""


class ThreadNumber(int):
    """A part of a key: one of the other threads. Which of them does which work, no run determines."""


class Kept(NamedTuple):
    """What is kept.

    `cells` are `(place, value)` of single values: tensors, arrays, generators, what is compared by `==`, containers of
    such, and what kind of thing an object is. `holders` are what holds them, each once. `own_objects` are this
    library's, which are no state of the model. `unread` says what could not be looked into.
    """

    cells: list[Cell]
    holders: list[Any]
    own_objects: list[Any]
    unread: list[str]


def kept_by(root: Any, *aside: Any, places: int = PLACES) -> Kept:
    """Return what a model keeps, or a criterion; what is nearest comes first. What is `aside` is not looked into."""
    walk = _Walk(places)
    for value in aside:
        if value is not None:
            walk.put_aside(value)
    modules = dict(root.named_modules()) if isinstance(root, nn.Module) else {}
    walk.modules.update(map(id, modules.values()))
    if isinstance(root, nn.Module):
        walk.parameters.update(map(id, (*root.parameters(), *(parameter for _, parameter in at_rest(root)))))
    for prefix, module in modules.items():
        walk.add_module(tuple(prefix.split(".")) if prefix else (), module)
    if not isinstance(root, nn.Module):
        walk.waiting.append((("attribute",), root, DEPTH))
    for cls in [*walk.classes]:
        if cls.__module__.partition(".")[0] not in (OWN, TORCH):
            walk.add_class(cls, DEPTH)
    walk.run()
    walk.add_other_classes()
    walk.run()
    if walk.waiting:
        walk.unread.append(f"state beyond the first {places} values that the model's code reaches")
    return Kept(walk.cells, walk.holders, walk.own_objects, walk.unread)


def kept_in(parts: Mapping[Key, Any], *aside: Any, places: int = PLACES) -> list[Cell]:
    """Return what is kept in parts of something, by place; what is nearest comes first. What is `aside` is not."""
    walk = _Walk(places)
    for value in aside:
        walk.put_aside(value)
    walk.waiting += [(key, value, DEPTH) for key, value in parts.items()]
    walk.run()
    return walk.cells


class _Walk:
    def __init__(self, places: int) -> None:
        self.cells: list[Cell] = []
        self.holders: list[Any] = []
        self.own_objects: list[Any] = []
        self.unread: list[str] = []
        self.waiting: deque[tuple[Key, Any, int]] = deque()
        self.classes: dict[type, None] = {}
        self.modules: set[int] = set()
        self.parameters: set[int] = set()
        self._named: set[str] = set()  # attributes that the user's code names
        self._places = places
        self._until = time.monotonic() + PATIENCE
        self._seen: dict[int, Key] = {}
        self._known_classes: set[type] = {object}
        self._alive: list[Any] = []  # what was made on the way: its address must not be given to something else

    def add_module(self, names: Key, module: nn.Module) -> None:
        own = vars(module)
        self.holders += [own, *(own[name] for name in REGISTERED if isinstance(own.get(name), (dict, set)))]
        for name, buffer in buffers_of(module).items():
            if buffer is not None:
                self.cells.append((("buffer", *names, name), buffer))
        self.waiting += [
            (("attribute", *names, name), value, DEPTH)
            for name, value in own.items()
            if name not in INTERNAL and name != "training" and not is_compiled(module)
        ]
        for name, parameter in parameters_of(module).items():
            if parameter is not None and parameter.__dict__ and not is_distributed(parameter):
                self._add_parts(("attribute", *names, name), parameter.__dict__, DEPTH)
        for kind in HOOKS:
            if hooks := own.get(kind):
                for number, hook in enumerate(hooks.values()):
                    if not is_own(hook) and not is_own(type(getattr(hook, "__self__", None))):
                        self.waiting.append((("attribute", *names, kind.strip("_"), number), hook, DEPTH))
        self.classes.update(dict.fromkeys(type(module).__mro__))

    def add_class(self, cls: type, depth: int) -> None:
        """What a class keeps and, if it is the user's, what its methods keep."""
        if cls in self._known_classes:
            return
        self._known_classes.add(cls)
        self.holders.append(cls)
        content = content_of(cls)
        self.waiting += [(("class", cls, name), value, depth) for name, value in content.items()]
        if is_users_class(cls):
            for name, value in vars(cls).items():
                if name not in content and not isinstance(value, type):
                    self.waiting += [(("class", cls, name), part, depth) for part in functions_behind(value)]

    def put_aside(self, value: Any) -> None:
        """Look at an object by its identity only, wherever it is met."""
        self._note(("aside", type(value).__name__), value)

    def run(self) -> None:
        """Look at what waits, and at what is found there."""
        while self.waiting and self._places:
            self._places -= 1
            self._look(*self.waiting.popleft())

    def add_other_classes(self) -> None:
        """Of others' classes that came by: what the user's code, all of it seen by now, may have set on them."""
        names = frozenset(self._named)
        for cls in self.classes:
            if cls not in self._known_classes:
                holder = OfClass(cls, names)
                self.holders.append(holder)
                self.waiting += [(("class", cls, name), value, DEPTH) for name, value in holder.content().items()]

    def _look(self, key: Key, value: Any, depth: int) -> None:
        if is_atom(value):
            self.cells.append((key, value))
        elif isinstance(value, GLOBAL_RANDOM_TYPES) and any(value is known for known in GLOBAL_RANDOM):
            return
        elif id(value) in self._seen:
            if self._seen[id(value)] != key:
                self.cells.append((key, ("the same as", _named(self._seen[id(value)]))))
        elif isinstance(value, ModuleType):
            if is_users_module(value):
                self._note(key, value)
                self._add_parts(key, Namespace(vars(value), None, lambda part: not callable(part)), depth - 1)
        elif isinstance(value, nn.Module) and id(value) in self.modules:
            self.cells.append((key, ("a", full_name(type(value)))))
        elif isinstance(value, nn.Parameter) and id(value) in self.parameters:
            return  # fingerprints tell whether they change
        elif isinstance(value, LEAF):
            self._note(key, value)
            self.cells.append((key, value))
            if isinstance(value, ITERATORS):
                self.waiting += [((*key, "of", n), part, depth - 1) for n, part in enumerate(gc.get_referents(value))]
            if isinstance(value, Tensor) and value.__dict__:
                self._add_parts(key, value.__dict__, depth - 1)
        elif is_machinery(value):
            self._note(key, value)
            self._look_at_machinery(key, value, depth - 1)
        elif depth <= 0:
            self.unread.append(f"what is kept deeper than {DEPTH} levels")
        else:
            self._note(key, value)
            self._look_inside(key, value, depth - 1)

    def _note(self, key: Key, value: Any) -> None:
        self._seen[id(value)] = key
        self._alive.append(value)

    def _add_parts(self, key: Key, holder: Any, depth: int, *, by_keys: bool = False) -> None:
        """Look at what a holder holds: as one value where that can be, else part by part."""
        self.holders.append(holder)
        content = content_of(holder)
        if not isinstance(content, dict):
            if all(map(is_atom, content)):
                self.cells.append((key, frozenset(content) if isinstance(holder, (set, frozenset)) else tuple(content)))
            else:
                some = itertools.islice(content, self._places + 1)  # no more of a long list could be looked at
                self.waiting += [((*key, place), part, depth) for place, part in enumerate(some)]
                self.cells.append((key, ("parts", len(content))))
            return
        if by_keys:
            names = [name if is_atom(name) else ("a", full_name(type(name))) for name in content]
            self.cells.append(((*key, "keys"), tuple(names)))
            self.waiting += [
                ((*key, DictKey(name if isinstance(name, (str, int)) else place)), part, depth)
                for place, (name, part) in enumerate(content.items())
            ]
            self.waiting += [((*key, "keys", n), name, depth) for n, name in enumerate(content) if not is_atom(name)]
        else:
            self.waiting += [((*key, name), part, depth) for name, part in content.items()]

    def _look_inside(self, key: Key, value: Any, depth: int) -> None:
        if isinstance(value, FunctionType):
            self._look_at_function(key, value, depth)
        elif isinstance(value, MethodType):
            self.waiting += [(key, value.__func__, depth), ((*key, "self"), value.__self__, depth)]
        elif isinstance(value, BuiltinFunctionType):
            self.cells.append((key, ("a", value.__qualname__)))
            if value.__self__ is not None and not isinstance(value.__self__, (type, ModuleType)):
                self.waiting.append(((*key, "self"), value.__self__, depth))
        elif isinstance(value, functools._lru_cache_wrapper):
            self._look_at_cache(key, value, depth)
        elif isinstance(value, type):
            self.cells.append((key, ("a", full_name(value))))
            self._look_at_classes(value, depth)
        elif isinstance(value, ContextVar):
            self._add_parts(key, Context(value), depth)
            self._say_of_threads(key, value)
        elif isinstance(value, contextvars.Context):
            self._add_parts(key, {variable.name: part for variable, part in value.items()}, depth)
        elif isinstance(value, memoryview):
            self.waiting.append(((*key, "obj"), value.obj, depth))
        elif isinstance(value, weakref.ref):
            self.waiting.append((key, value(), depth))
        elif isinstance(value, MappingProxyType):
            self._add_parts(key, dict(value), depth)
        else:
            self._look_at_object(key, value, depth)

    def _look_at_function(self, key: Key, function: FunctionType, depth: int) -> None:
        if is_own(function):
            return
        self.cells.append((key, ("code", function.__code__)))
        if (original := compiled_from(function)) is not None:
            self.waiting.append(((*key, "compiled"), original, depth))
            return
        if str(function.__module__).partition(".")[0] in LIBRARIES:
            return
        self._add_parts(key, Variables(function), depth)
        self._add_parts(key, function.__dict__, depth)
        if is_users_function(function):
            self._named |= names_in(function.__code__)[1]
            for name, space in spaces_of(function):
                self.holders.append(space)
                for variable, value in space.content().items():
                    self.waiting.append((("variable", name, variable), value, depth))

    def _look_at_cache(self, key: Key, function: Any, depth: int) -> None:
        inner = function.__wrapped__
        if not isinstance(inner, FunctionType) or not is_users_function(inner):
            return
        cache = Cache(function)
        self.holders.append(cache)
        for place, (arguments, result) in enumerate(cache.entries()):
            entry = CacheEntry(repr(arguments) if is_atom(arguments) else place)
            self.waiting.append(((*key, "cache", entry), result, depth))
        self.waiting.append((key, inner, depth))

    def _look_at_machinery(self, key: Key, value: Any, depth: int) -> None:
        if is_of_own(value) and not isinstance(value, nn.Module):
            self.own_objects.append(value)
        self.cells.append((key, ("a", full_name(type(value)))))
        if not await_result(value, self._until):
            self.unread.append(
                f"what {_named(key)} ({full_name(type(value))}) will hold, which another thread computes"
            )
        elif full_name(type(value)).startswith(UNREAD):
            self._say_unread(key, value)
        for holder in hung_on(value):
            self._add_parts(key, holder, depth)
        self._look_at_classes(type(value), depth)

    def _look_at_object(self, key: Key, value: Any, depth: int) -> None:
        kind = type(value)
        is_container = isinstance(value, (dict, list, deque, set, tuple, frozenset))
        is_users = is_users_class(kind)
        if not is_container:
            self.cells.append((key, ("a", full_name(kind))))
            depth -= 0 if is_users else STRANGE - 1
        if isinstance(value, (tuple, frozenset)):
            self.waiting += [((*key, place), part, depth) for place, part in enumerate(value)]
        elif is_container:
            self._add_parts(key, value, depth, by_keys=isinstance(value, dict))
        for part in next((parts for cls, parts in SHOWN.items() if isinstance(value, cls)), ()):
            self.waiting.append(((*key, part), getattr(value, part), depth))
        own = getattr(value, "__dict__", None)
        if type(own) is dict and own:
            self._add_parts(key, own, depth)
        elif type(own) is dict:
            self.holders.append(own)
        slots = slots_of(value) if is_users or not is_container else {}
        if slots:
            self._add_parts(key, Slots(value, slots), depth)
        if isinstance(value, nn.Module) and own and own.keys() >= set(CONTAINERS):  # else its __init__ did not run
            self.cells += [((*key, "parameter", number), part) for number, part in enumerate(own_parameters([value]))]
        if isinstance(value, threading.local):
            self._look_at_other_threads(key, value, depth)
        self._look_at_classes(kind, depth)
        if own is None and not slots and not is_container and not isinstance(value, functools.partial):
            self._look_at_closed(key, value, depth)

    def _look_at_classes(self, kind: type, depth: int) -> None:
        self.classes.update(dict.fromkeys(kind.__mro__))
        for cls in kind.__mro__:
            if is_users_class(cls):
                self.add_class(cls, depth)

    def _look_at_other_threads(self, key: Key, value: threading.local, depth: int) -> None:
        others = OtherThreads(value)
        if others.can_be_read():
            self.holders.append(others)
            for number, alike in enumerate(others.alike()):
                place = (*key, "other threads", ThreadNumber(number))
                self.waiting.append((place, alike[0], depth))
                self.waiting += [((*place, CacheEntry(n)), kept, depth) for n, kept in enumerate(alike[1:], 1)]
        else:
            self._say_of_threads(key, value)

    def _look_at_closed(self, key: Key, value: Any, depth: int) -> None:
        """An object that shows nothing of itself: said, unless it is of torch, NumPy or Python and has no place.

        What those refer to is known to Python's collector; it is compared, and put back as far as it can be by itself.
        """
        for part in functions_behind(value):
            if part is not value:
                self.waiting.append((key, part, depth))
                return
        kind = type(value)
        name = full_name(kind)
        if kind in FRAMES:
            frame = getattr(value, FRAMES[kind])
            if frame is None:  # it has come to its end
                return
            self.waiting += [((*key, local), part, depth) for local, part in dict(frame.f_locals).items()]
        if name.startswith(UNREAD) or name.partition(".")[0] not in LIBRARIES:
            self._say_unread(key, value)
            return
        self.waiting += [((*key, n), part, depth) for n, part in enumerate(gc.get_referents(value)) if part is not kind]
        if hasattr(kind, "__next__") and not isinstance(value, PLACELESS):
            self._say_unread(key, value)

    def _say_of_threads(self, key: Key, value: Any) -> None:
        if threading.active_count() > 1:
            self.unread.append(f"what {_named(key)} ({full_name(type(value))}) keeps for other threads")

    def _say_unread(self, key: Key, value: Any) -> None:
        self.unread.append(
            f"what {_named(key)} ({full_name(type(value))}) keeps, which cannot be looked into and put back"
        )


GLOBAL_RANDOM_TYPES = tuple({type(value) for value in GLOBAL_RANDOM})


def _named(key: Key) -> str:
    return ".".join(part.__qualname__ if isinstance(part, type) else str(part) for part in key[1:])


def functions_behind(value: Any) -> Iterator[Any]:
    """Yield the functions behind an entry of a class."""
    if isinstance(value, (staticmethod, classmethod)):
        yield from functions_behind(value.__func__)
    elif isinstance(value, property):
        yield from (part for part in (value.fget, value.fset, value.fdel) if part is not None)
    elif isinstance(value, (FunctionType, functools._lru_cache_wrapper, functools.partialmethod)):
        yield value
    elif isinstance(value, functools.cached_property):
        yield value.func


def structure_of(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """Yield the dictionaries of parts, parameters and hooks of modules."""
    for module in modules:
        own = vars(module)
        for name in STRUCTURE:
            holder = own.get(name)
            if isinstance(holder, (dict, set)):
                yield holder
