"""Text from data files, made safe to print."""

from __future__ import annotations


def printable(text: str, limit: int = 80) -> str:
    """Return `text` without control and formatting characters, cut to `limit` characters.

    Column and file names come from strangers: an escape sequence in one must not reach the terminal.
    """
    safe = "".join(character for character in text if character.isprintable())
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"
