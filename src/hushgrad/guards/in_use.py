"""Which modules and optimizers belong to an open session: each belongs to one at most."""

from __future__ import annotations

from collections.abc import Iterable

from torch.utils.weak import WeakIdKeyDictionary

# By identity, and weakly: equal modules are different ones, and a session that was thrown away keeps nobody out.
_in_use = WeakIdKeyDictionary()


def is_in_use(objects: Iterable[object]) -> bool:
    """Whether one of the modules or optimizers belongs to an open session."""
    return any(part in _in_use for part in objects)


def claim(objects: Iterable[object]) -> None:
    """Note that these belong to a session that has opened."""
    _in_use.update(dict.fromkeys(objects))


def release(objects: Iterable[object]) -> None:
    """Note that their session was closed."""
    for part in objects:
        _in_use.pop(part, None)  # type: ignore[no-untyped-call]
