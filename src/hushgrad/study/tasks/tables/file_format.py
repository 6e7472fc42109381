"""What divides the cells of a file of text, and how its characters are written."""

from __future__ import annotations

from typing import Any

NAMED = {"tab": "\t", "comma": ",", "semicolon": ";", "space": " "}
"""Delimiters that a command line names."""


def is_delimiter(value: Any) -> bool:
    """Is this one character that can stand between cells?"""
    return isinstance(value, str) and len(value) == 1 and value not in '"\r\n\0' and value.isascii()


def is_encoding(value: Any) -> bool:
    """Is this the name of an encoding of text that Python knows?"""
    try:
        return isinstance(value, str) and isinstance("a".encode(value), bytes)
    except (LookupError, ValueError, UnicodeError):
        return False
