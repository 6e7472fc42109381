"""How the cells of a file spell numbers, dates and missing values: public facts of its format, given beforehand.

Each cell is read by itself, so that no type of a column has to be learned from the records.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import date, datetime

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
MARKS = (".", ",")
"""Decimal marks."""

_TIME = r"(?:[T ]\d{1,2}:\d{2}.*)?"
_YEAR_FIRST = re.compile(rf"(\d{{4}})[-/](\d{{1,2}})[-/](\d{{1,2}}){_TIME}", re.ASCII | re.DOTALL)
_DAY_FIRST = re.compile(rf"(\d{{1,2}})\.(\d{{1,2}})\.(\d{{4}}){_TIME}", re.ASCII | re.DOTALL)
_GROUPED = re.compile(r"[+-]?\d{1,3}(\.\d{3})+(,\d+)?|[+-]?\d{1,3}(\.\d{3})*,\d+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Spelling:
    """How cells are spelled.

    Attributes:
        decimal: the decimal mark. With "," a number may have points between groups of three digits, where a comma or a
            second point shows that they are no decimal points: 1.234,5 and 1.234.567, but 1.234 is a little over one.
        missing: marks of a missing value, beside the usual ones.
        finds_dates: whether 2024-05-31, 2024/05/31 and 31.05.2024 (with or without a time) are dates, in a column of
            which nothing was declared.
    """

    decimal: str = "."
    missing: tuple[str, ...] = ()
    finds_dates: bool = True

    def is_missing(self, cell: str) -> bool:
        """Is the cell empty, one of the usual marks for a missing value, or a declared one?"""
        return cell.lower() in MISSING or cell in self.missing

    def number(self, cell: str) -> float | None:
        """Return the finite number that a cell spells, or None."""
        if self.decimal == "," and ("," in cell or cell.count(".") > 1):
            plain = _without_commas(cell)
            if plain is None:
                return None
            cell = plain
        try:
            number = float(cell)
        except ValueError:
            return None
        return number if math.isfinite(number) else None

    def date(self, cell: str, format: str | None = None) -> date | None:
        """Return the day that a cell spells, in a declared `format` of Python's strptime or as `finds_dates` says."""
        if format is not None:
            try:
                return datetime.strptime(cell, format).date()
            except ValueError:
                pass  # what Python, or a file of typed columns, hands over as a date comes year first
        for pattern, order in ((_YEAR_FIRST, (1, 2, 3)), (_DAY_FIRST, (3, 2, 1))):
            found = pattern.fullmatch(cell)
            if found is not None:
                try:
                    return date(*(int(found[place]) for place in order))
                except ValueError:
                    return None
        return None


def _without_commas(cell: str) -> str | None:
    """Return a number with a decimal comma as Python reads it; None for what is none."""
    if _GROUPED.fullmatch(cell):
        return cell.replace(".", "").replace(",", ".")
    return cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else None
