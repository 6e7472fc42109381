"""Text in the cells of CSV files that people open in spreadsheets."""

from __future__ import annotations

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def as_text_cell(text: str) -> str:
    """Return text that a spreadsheet would run as a formula with an apostrophe before it; numbers are left as they are.

    Guarantee: no name of a class or a run becomes a formula.
    """
    if not text.startswith(FORMULA_STARTS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
