"""Output whose encoding lacks letters, such as a pipe on cp1252 or the C locale: they are spelled out, never an error.

ε becomes "epsilon", ≤ becomes "<=". A character that has no spelling becomes its number, such as \\u4e2d, so that
nothing is lost.
"""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

_ERRORS = "hushgrad.spelled"
_SIGNS = {
    "…": "...", "−": "-", "–": "-", "—": "-", "─": "-", "·": "*", "×": "x", "∞": "inf", "≤": "<=", "≥": ">=", "±": "+-",
    "→": "->", "←": "<-", "‖": "|", "√": "sqrt ", "²": "^2", "³": "^3", "½": "1/2", "✓": "yes", "✗": "no", "’": "'",
    "“": '"', "”": '"',
}  # fmt: skip
_LETTER = "LETTER "


def spelled(text: str) -> str:
    """Return a text in ASCII."""
    return "".join(character if character.isascii() else _one(character) for character in text)


def spell_what_cannot_be_written() -> None:
    """Have standard output and standard error spell out what their encoding lacks."""
    codecs.register_error(_ERRORS, _replacement)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors=_ERRORS)


def _one(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    name = unicodedata.name(character, "")
    if name.startswith("GREEK") and _LETTER in name:
        letter = name.partition(_LETTER)[2].split(" ")[0].lower()
        return letter.capitalize() if "CAPITAL" in name else letter
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or character.encode("ascii", "backslashreplace").decode()


def _replacement(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return spelled(error.object[error.start : error.end]), error.end
