"""Torch's operators by name. What torch lacks, and what is said twice, is an error at import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

import torch

from hushgrad.errors import InvalidArgumentError

Space = ModuleType | type
Function = Callable[..., Any]
R = TypeVar("R")

OPTIONAL: Mapping[str, str] = {
    "__div__": "the division of Python 2, which no operator of Python 3 calls",
    "__rdiv__": "the division of Python 2, which no operator of Python 3 calls",
    "__idiv__": "the division of Python 2, which no operator of Python 3 calls",
}
"""Names that a version of torch may lack, with the reason: a rule for them is then not needed."""


def lookup(name: str, spaces: Sequence[Space]) -> list[Function]:
    """Return what torch calls by a name: functions, methods and attribute reads; nothing where it has none."""
    found: list[Function] = []
    for space in spaces:
        entry: Any = vars(space).get(name)
        if entry is None and isinstance(space, type):
            entry = getattr(space, name, None)
        if type(entry).__name__ == "getset_descriptor" or isinstance(entry, property):
            found.append(entry.__get__)
        elif callable(entry):
            found.append(entry)
    return found


def named(names: str, spaces: Sequence[Space]) -> list[Function]:
    """Return what torch calls by some names.

    Guarantee: a name that torch lacks or that stands twice raises at import.

    Raises:
        InvalidArgumentError: such a name, unless it is optional.
    """
    twice = [name for name, count in Counter(names.split()).items() if count > 1]
    if twice:
        raise InvalidArgumentError(f"operators named twice in one table: {', '.join(twice)}", cure="Name each once")
    found = {name: lookup(name, spaces) for name in names.split()}
    missing = [name for name, functions in found.items() if not functions and name not in OPTIONAL]
    if missing:
        raise InvalidArgumentError(
            f"torch {torch.__version__} has no operator called {', '.join(missing)}",
            cure="Install a version of torch that hushgrad was tested with. In hushgrad's own tables, correct the name "
            "or give the reason in OPTIONAL",
        )
    return [function for functions in found.values() for function in functions]


def in_place_forms(names: str, spaces: Sequence[Space]) -> list[Function]:
    """Return the forms that work in place, `name_`, of those of some operators that have one."""
    return [function for name in names.split() if name[-1] != "_" for function in lookup(f"{name}_", spaces)]


def joined(*tables: Mapping[Function, R]) -> dict[Function, R]:
    """Return several tables as one.

    Guarantee: an operator that stands in two tables raises at import.

    Raises:
        InvalidArgumentError: such an operator.
    """
    found: dict[Function, R] = {}
    for table in tables:
        add(found, table)
    return found


def add(table: dict[Function, R], entries: Mapping[Function, R], *, apart_from: Container[Function] = ()) -> None:
    """Add entries to a table, all of them or none.

    Raises:
        InvalidArgumentError: an operator that stands in the table already, or in the one to be kept apart from.
    """
    twice = [function for function in entries if function in table or function in apart_from]
    if twice:
        raise InvalidArgumentError("has a rule already", where=repr(twice[0]), cure="Register each operator once")
    table.update(entries)
