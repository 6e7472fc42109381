"""Text from data files, made safe to print."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def printable(text: str, limit: int = 80) -> str:
    """Return `text` without control and formatting characters, cut to `limit` characters.

    Column and file names come from strangers: an escape sequence in one must not reach the terminal.
    """
    safe = "".join(character for character in text if character.isprintable())
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def full_name(called: Callable[..., Any]) -> str:
    """Return the full name of a function or class; of another callable, that of its class."""
    kind = type(called)
    return f"{getattr(called, '__module__', kind.__module__)}.{getattr(called, '__qualname__', kind.__qualname__)}"
