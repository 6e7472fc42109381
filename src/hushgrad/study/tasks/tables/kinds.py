"""Kinds of settings that only tables have."""

from __future__ import annotations

import itertools
from typing import Any

from hushgrad.arguments import real_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable
from hushgrad.study.settings import Kind, number, several
from hushgrad.study.tasks.tables.column import check_bounds
from hushgrad.study.tasks.tables.file_format import NAMED, is_delimiter, is_encoding


def _bounds_from(given: str) -> tuple[str, float, float]:
    """Return column, lower and upper bound; the column's own name may contain colons."""
    column, low, high = given.rsplit(":", 2)
    return column, float(low), float(high)


def _check_bounds(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(item, tuple) and len(item) == 3 for item in value):
        raise InvalidArgumentError(
            f"must be triples of a column, its lower and its upper bound, got {type(value).__name__}",
            where=name,
            cure="Pass such as (('age', 0, 120),)",
        )
    for column, low, high in value:
        if not isinstance(column, str):
            raise InvalidArgumentError(
                f"must begin with a column's name, got {type(column).__name__}",
                where=name,
                cure="Pass the name as text",
            )
        check_bounds(f"column {printable(column)!r}", (low, high))


BOUNDS = Kind(
    _bounds_from, _check_bounds, "COLUMN:LOW:HIGH", "two numbers after a column, such as age:0:120", repeats=True
)


def _check_delimiter(name: str, value: Any) -> None:
    if not is_delimiter(value):
        raise InvalidArgumentError(
            "must be one character that stands between cells", where=name, cure="Give such as ; or tab"
        )


DELIMITER = Kind(
    lambda given: NAMED.get(given, given), _check_delimiter, "CHARACTER", f"one character, or {', '.join(NAMED)}"
)


def _check_encoding(name: str, value: Any) -> None:
    if not is_encoding(value):
        raise InvalidArgumentError(
            "must be an encoding of text that Python knows", where=name, cure="Give such as latin-1, cp1252 or utf-16"
        )


ENCODING = Kind(str, _check_encoding, "NAME", "an encoding, such as latin-1")


def _check_edges(name: str, value: Any) -> None:
    several(number(real_number)).check(name, value)
    if any(low >= high for low, high in itertools.pairwise(value)):
        raise InvalidArgumentError("must rise", where=name, cure="Give such as 30,60")


EDGES = Kind(several(number(real_number)).parse, _check_edges, "N,N,…", "rising numbers, such as 30,60")
