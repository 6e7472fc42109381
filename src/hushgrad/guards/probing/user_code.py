"""Which code is the user's own, and which variables outside of itself it names.

What a forward keeps need not be on the model: a variable of the file, a default argument, an attribute of a function
or of another module do as well. All of them are named by code, so code is read, and only the user's: the state of
torch, of the standard library and of installed packages is theirs, and far too much.
"""

from __future__ import annotations

import dis
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

OWN = __name__.partition(".")[0]

_INSTALLED = tuple(
    {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_GLOBAL = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "STORE_NAME"})
_ATTRIBUTE = frozenset({"LOAD_ATTR", "STORE_ATTR", "DELETE_ATTR", "LOAD_METHOD"})


@lru_cache(maxsize=4096)
def _is_file_of_user(file: str) -> bool:
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in _INSTALLED)


def _is_named_for_user(name: str, file: Any) -> bool:
    top = name.partition(".")[0]
    if top == OWN:
        return False
    if isinstance(file, str):
        return _is_file_of_user(file)
    return top not in sys.stdlib_module_names


def is_own(value: Any) -> bool:
    """Whether a class or function is this library's."""
    return str(getattr(value, "__module__", None)).partition(".")[0] == OWN


def is_users_module(module: ModuleType) -> bool:
    """Whether a module is the user's."""
    return _is_named_for_user(module.__name__, getattr(module, "__file__", None))


def is_users_function(function: FunctionType) -> bool:
    """Whether a function was written in a file of the user's."""
    space = function.__globals__
    return _is_named_for_user(str(space.get("__name__")), space.get("__file__"))


def is_users_class(cls: type) -> bool:
    """Whether a class was written in a file of the user's."""
    module = sys.modules.get(cls.__module__)
    return _is_named_for_user(cls.__module__, getattr(module, "__file__", None))


@lru_cache(maxsize=4096)
def names_in(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the global variables and the attributes that code names, with the functions inside it.

    Where it calls `getattr` or `setattr`, its constants may be names of attributes.
    """
    variables, attributes = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in _GLOBAL:
            variables.add(str(step.argval))
        elif step.opname in _ATTRIBUTE:
            attributes.add(str(step.argval))
    if variables & {"getattr", "setattr"}:
        attributes |= {name for name in code.co_consts if isinstance(name, str) and name.isidentifier()}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            more, others = names_in(constant)
            variables |= more
            attributes |= others
    return frozenset(variables), frozenset(attributes)


class Namespace:
    """The variables of a file that some code names, there or not: what is not there yet may come.

    Attributes:
        values: those of the whole file.
        names: which are named; None if the code asks for all of them (`globals()`).
        takes: which values count.
    """

    def __init__(self, values: dict[str, Any], names: frozenset[str] | None, takes: Callable[[Any], bool]) -> None:
        self.values, self.names, self.takes = values, names, takes

    def content(self) -> dict[str, Any]:
        """Return them by name."""
        values = self.values
        names = list(values) if self.names is None else sorted(self.names)
        return {
            name: values[name]
            for name in names
            if name in values and not (name.startswith("__") and name.endswith("__")) and self.takes(values[name])
        }

    def put(self, content: Mapping[str, Any]) -> None:
        """Give them back what they had."""
        for name in self.content().keys() - content.keys():
            del self.values[name]
        self.values.update(content)


def spaces_of(function: FunctionType) -> Iterator[tuple[str, Namespace]]:
    """Yield what a function of the user's names in its own file and in modules: of others' modules data and classes."""
    variables, attributes = names_in(function.__code__)
    space = function.__globals__
    yield str(space.get("__name__")), Namespace(space, None if "globals" in variables else variables, _is_not_module)
    seen: set[int] = set()
    waiting = [space[name] for name in variables if isinstance(space.get(name), ModuleType)]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        takes = _is_not_module if is_users_module(module) else _is_data
        yield module.__name__, Namespace(vars(module), attributes, takes)
        waiting += [vars(module)[name] for name in attributes if isinstance(vars(module).get(name), ModuleType)]


def _is_not_module(value: Any) -> bool:
    return not isinstance(value, ModuleType)


def _is_data(value: Any) -> bool:
    return isinstance(value, type) or not (isinstance(value, ModuleType) or callable(value))
