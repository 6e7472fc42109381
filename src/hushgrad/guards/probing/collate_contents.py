"""What a batch holds beside tensors, arrays, numbers and texts: sets, dates, functions, the order of keys.

A program reads such a part as well as a number. So it is compared as one value: by all that can be read of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from hushgrad.guards.probing.kept import kept_by
from hushgrad.guards.probing.state_values import agree, copy_of, is_atom
from hushgrad.guards.probing.trees import MOST_DEPTH, Content, Path, parts_of
from hushgrad.printable import full_name

MOST_CELLS = 1_000
"""So many values of one such part are looked at."""


def content_of_part(part: Any, aside: Any = None) -> Content:
    """Return what a part holds that is none of numbers, texts and containers; the object `aside` is not opened."""
    if is_atom(part):
        return Content({(): part})
    found = kept_by([part], aside, places=MOST_CELLS)
    return Content({key: copy_of(value) for key, value in found.cells}, tuple(found.unread))


def is_opaque(part: Any) -> bool:
    """Return whether nothing more can be said of a part of a batch than its content: neither tensor nor container."""
    is_named = isinstance(part, tuple) and "_fields" in vars(type(part))
    if part is None or is_named or type(part) is tuple or isinstance(part, (Tensor, Content, Mapping, list)):
        return False
    return is_atom(part) or not parts_of(part)


def contents_at(value: Any, path: Path = ()) -> Iterator[tuple[Path, Content]]:
    """Yield `(path, content)` for what nested values hold beside the values of their tensors, in a fixed order.

    Of a tensor: its attributes in Python, and what can be asked of it that is no value. Of a mapping: the order of its
    keys. Of an object: its class.
    """
    if isinstance(value, Content):
        yield path, value
        return
    if isinstance(value, Tensor):
        if type(value) is not Tensor or value.requires_grad:  # most are plain, and there are many
            yield path, Content({(): (full_name(type(value)), value.requires_grad)})
        if value.__dict__:
            yield (*path, "its attributes"), content_of_part(dict(value.__dict__))
        return
    parts = parts_of(value) if len(path) <= MOST_DEPTH else []
    if isinstance(value, Mapping):
        yield path, Content({(): tuple(key for key in value if is_atom(key))})
    else:
        yield path, Content({(): full_name(type(value))})
    for key, part in parts:
        yield from contents_at(part, (*path, key))


def are_same(one: Content, other: Content) -> bool:
    """Return whether two parts held the same."""
    return one.cells.keys() == other.cells.keys() and all(
        agree(cell, other.cells[key]) for key, cell in one.cells.items()
    )


def first_other_content(one: Any, other: Any) -> Path | None:
    """Return the first place at which two nested values hold something else beside tensors; None where they do not."""
    here, there = dict(contents_at(one)), dict(contents_at(other))
    for path in {**here, **there} if here or there else ():
        if path not in here or path not in there or not are_same(here[path], there[path]):
            return path
    return None
