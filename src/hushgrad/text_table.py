"""Tables as plain text: columns side by side, cells wrapped where a screen is narrow."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from itertools import zip_longest

GAP = "  "
LEAST = 4
"""No column of words becomes narrower than this many characters, nor, where all fit, than its longest word."""


def text_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    right: Collection[str] = (),
    between_rows: bool = False,
) -> str:
    """Return `rows` under `heads` as lines of text.

    Args:
        width: the most characters of a line; None for as many as the cells need.
        right: heads of the columns of numbers. They are set to the right and never wrapped; all others are wrapped,
            the widest first, until the table fits; within words only where it could not fit otherwise.
        between_rows: leave a line empty after each row, for cells of several lines.
    """
    numbers = [head in right for head in heads]
    widths = _widths(heads, rows, numbers, width)
    lines = [*_lines(heads, widths, numbers), GAP.join("-" * size for size in widths)]
    for place, row in enumerate(rows):
        lines += [""] if between_rows and place else []
        lines += _lines(row, widths, numbers)
    return "\n".join(lines)


def wrapped(text: str, width: int) -> list[str]:
    """Return `text` in lines of at most `width` characters: cut between words, and within one that is longer."""
    found: list[str] = []
    for line in text.splitlines() or [""]:
        found += textwrap.wrap(line, width, break_on_hyphens=False) or [""]
    return found


def hanging(text: str, width: int) -> list[str]:
    """Return one line `wrapped`, no word cut, and what is carried over set in by two more spaces."""
    start = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        text.lstrip(),
        width,
        initial_indent=start,
        subsequent_indent=f"{start}  ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _widths(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[bool], width: int | None
) -> list[int]:
    widths = [
        max(len(line) for cell in column for line in cell.splitlines() or [""])
        for column in zip(heads, *rows, strict=True)
    ]
    words = [place for place, is_number in enumerate(numbers) if not is_number]
    longest = [
        max((len(word) for cell in column for word in cell.split()), default=0)
        for column in zip(heads, *rows, strict=True)
    ]
    while width is not None and sum(widths) + len(GAP) * (len(widths) - 1) > width:
        whole = [place for place in words if widths[place] > max(longest[place], LEAST)]
        narrowed = whole or [place for place in words if widths[place] > LEAST]
        if not narrowed:
            break
        widths[max(narrowed, key=widths.__getitem__)] -= 1
    return widths


def _lines(cells: Sequence[str], widths: Sequence[int], numbers: Sequence[bool]) -> list[str]:
    """Return one row: as many lines as its longest cell has."""
    columns = [
        [cell] if is_number else wrapped(cell, size)
        for cell, size, is_number in zip(cells, widths, numbers, strict=True)
    ]
    return [
        GAP.join(
            part.rjust(size) if is_number else part.ljust(size)
            for part, size, is_number in zip(parts, widths, numbers, strict=True)
        ).rstrip()
        for parts in zip_longest(*columns, fillvalue="")
    ]
