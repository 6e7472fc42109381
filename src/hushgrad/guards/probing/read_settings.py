"""What the user's own code of a forward reads beside tensors that it is given, however deep, and wherever it lies.

A dictionary or an object on the model, a variable of the file or around a function, an environment variable: whatever
a loop writes there enters the next forward as an argument would.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from torch import nn

from hushgrad.guards.probing.kept import HOOKS, INTERNAL, Key, functions_behind, kept_in
from hushgrad.guards.probing.settings import MOST_PLACES, Settings, told
from hushgrad.guards.probing.user_code import is_own, is_users_class, is_users_function, names_in
from hushgrad.torch_internals import unseen

EVERYTHING = frozenset({"__dict__", "vars"})
"""Names by which code may read any attribute."""


def read_by_forwards(model: nn.Module) -> Settings:
    """Return what the forwards of a model and of its parts read by name, as far as they are the user's code.

    Attributes of each part, of its classes, what its methods keep (variables around them, default arguments), what
    hooks keep, variables of files. Parameters and parts are not looked into.
    """
    modules = list(model.modules())
    users = [(number, module) for number, module in enumerate(modules) if is_users_class(type(module))]
    classes = list(dict.fromkeys(cls for _, module in users for cls in type(module).__mro__ if is_users_class(cls)))
    own = [value for _, module in users for value in vars(module).values() if isinstance(value, FunctionType)]
    names, functions = _reached([*_forwards(classes), *own], classes)
    parts: dict[Key, Any] = {(number, name): value for number, name, value in _attributes(users, names)}
    parts |= {("class", number, name): value for number, name, value in _of_classes(classes, names)}
    parts |= {("code", function.__qualname__): function for function in functions}
    parts |= {("hook", *place): hook for place, hook in _hooks(modules)}
    parts |= {("environment",): dict(os.environ)} if "getenv" in names else {}
    return _settings(parts, *modules, *classes)


def kept_around(criterion: Any) -> Settings:
    """Return what a criterion that is no module keeps: a function or an object, of which everything counts."""
    return _settings({("criterion",): criterion})


def _settings(parts: dict[Key, Any], *aside: Any) -> Settings:
    with unseen():
        cells = kept_in(parts, *aside, places=len(parts) + MOST_PLACES) if parts else []
        return {place: told(value) for place, value in cells}


def _forwards(classes: Iterable[type]) -> Iterator[FunctionType]:
    for cls in classes:
        yield from _functions(functions_behind(vars(cls).get("forward")))


def _functions(values: Iterable[Any]) -> Iterator[FunctionType]:
    return (value for value in values if isinstance(value, FunctionType))


def _reached(
    functions: Iterable[FunctionType], classes: Iterable[type]
) -> tuple[frozenset[str], dict[FunctionType, None]]:
    """Return the attributes that functions name, or functions that they name, and all these functions."""
    names: set[str] = set()
    found: dict[FunctionType, None] = {}
    seen: set[FunctionType] = set()
    waiting = list(functions)
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        waiting += _functions(cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell))
        if not is_users_function(function):  # a library's around one of the user's
            continue
        found[function] = None
        variables, attributes = names_in(function.__code__)
        new = (attributes | (variables & EVERYTHING)) - names
        names |= new
        near = [vars(cls)[name] for cls in classes for name in new & vars(cls).keys()]
        waiting += _functions(inner for value in near for inner in functions_behind(value))
        waiting += _functions(function.__globals__.get(name) for name in variables)
    return frozenset(names), found


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _attributes(modules: Iterable[tuple[int, nn.Module]], names: frozenset[str]) -> Iterator[tuple[int, str, Any]]:
    takes_all = bool(names & EVERYTHING)
    for number, module in modules:
        for name, value in vars(module).items():
            if name not in INTERNAL and (takes_all or name in names):
                yield number, name, value


def _of_classes(classes: Iterable[type], names: frozenset[str]) -> Iterator[tuple[int, str, Any]]:
    """Yield what classes hold beside their code."""
    for number, cls in enumerate(classes):
        for name in names & vars(cls).keys():
            value = vars(cls)[name]
            if not (name.startswith("__") or next(functions_behind(value), None)):
                yield number, name, value


def _hooks(modules: Iterable[nn.Module]) -> Iterator[tuple[tuple[int, str, int], Any]]:
    for number, module in enumerate(modules):
        for kind in HOOKS:
            for place, hook in enumerate((vars(module).get(kind) or {}).values()):
                if not is_own(hook) and not is_own(type(getattr(hook, "__self__", None))):
                    yield (number, kind, place), hook
