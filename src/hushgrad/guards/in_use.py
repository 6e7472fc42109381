"""Which modules and optimizers belong to an open session: each belongs to one at most."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch.utils.weak import WeakIdKeyDictionary

# By identity, and weakly: equal modules are different ones, and a session that was thrown away keeps nobody out. Their
# owners weakly, too: a session holds its model, which would otherwise be kept by its own entry.
_in_use = WeakIdKeyDictionary()


def is_in_use(objects: Iterable[object]) -> bool:
    """Whether one of the modules or optimizers belongs to an open session."""
    return any(part in _in_use for part in objects)


def owners_of(objects: Iterable[object]) -> list[object]:
    """Return the open sessions that these modules and optimizers belong to, each once."""
    found = {id(owner): owner for part in objects if (owner := _in_use.get(part, _nobody)()) is not None}  # type: ignore[no-untyped-call]
    return [*found.values()]


def claim(objects: Iterable[object], owner: object) -> None:
    """Note that these belong to `owner`, a session that has opened."""
    _in_use.update(dict.fromkeys(objects, weakref.ref(owner)))


def release(objects: Iterable[object]) -> None:
    """Note that their session was closed."""
    for part in objects:
        _in_use.pop(part, None)  # type: ignore[no-untyped-call]


def _nobody() -> None:
    return None
