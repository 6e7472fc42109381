"""Cells of a table as numbers, by a fixed rule that learns nothing from the data.

A vocabulary, a mean or a quantile taken from private records is outside every ε. So nothing is fitted here: a row's
features are a function of that row alone, of the column names and of what the user declares.

- Text: the pair (column, text) is hashed to a bucket and a sign (Weinberger et al. 2009, "Feature hashing"). With a
  public list of categories, a text that is not in it counts as one more.
- A number x without declared bounds: asinh(x) on a fixed grid of four knots per doubling; the two knots beside it share
  a weight of 1 (a hat function each), and each knot is hashed like text. Nearby numbers get nearby features at every
  scale from 10⁻² to 10³⁰⁸, with no scaling to choose.
- A number with declared bounds: the same with 16 equal intervals between the bounds; what lies outside is clamped.
- A date: a knot for each year, a knot for each month of the year (December is beside January), and the day of the week;
  the time of day is left out.
- A missing cell is a text of its own.

A model that is linear in these features is an additive model, piecewise linear in every column.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from datetime import date

import numpy as np
import torch
from torch import Tensor

from hushgrad.errors import TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks.table import Table
from hushgrad.study.tasks.tables.column import ANY, DATE, NUMBER, TEXT, Column
from hushgrad.study.tasks.tables.spelling import Spelling

KNOTS_PER_DOUBLING = 4
INTERVALS_BETWEEN_BOUNDS = 16
MONTHS = 12
MAX_FEATURE_BYTES = 4 << 30

Feature = tuple[int, float]


def number_of_features(columns: int) -> int:
    """Return how many hash buckets to use for a table: a power of two, about 64 per column, 256 to 4096."""
    return 1 << min(12, max(8, math.ceil(math.log2(64 * columns))))


def encode(table: Table, columns: Sequence[Column], *, spelling: Spelling | None = None, features: int) -> Tensor:
    """Return the features of the columns of every row, [N, features], float32, rows of norm about 1.

    Guarantee: a row's features depend on that row alone; adding, removing or changing other rows changes nothing.
    Raises TaskDataError if a column holds something that is not of its declared type, or if the result would not fit in
    memory.
    """
    spelled = spelling or Spelling()
    rows = len(table.rows)
    if rows * features * 4 > MAX_FEATURE_BYTES:
        raise TaskDataError(
            f"{rows} rows of {features} features are more than fit into memory", cure="Use fewer rows, or drop columns"
        )
    row_of: list[int] = []
    bucket_of: list[int] = []
    value_of: list[float] = []
    for column in columns:
        # Columns repeat their values; each distinct cell is hashed once.
        known: dict[str, list[Feature]] = {}
        for row, cell in enumerate(table.column(column.name)):
            found = known.get(cell)
            if found is None:
                found = known[cell] = _cell(column, cell, spelled, features)
            for bucket, value in found:
                row_of.append(row)
                bucket_of.append(bucket)
                value_of.append(value)
    encoded = np.zeros((rows, features), dtype=np.float32)
    places = np.asarray(row_of, dtype=np.int64), np.asarray(bucket_of, dtype=np.int64)
    np.add.at(encoded, places, np.asarray(value_of, dtype=np.float32))
    return torch.from_numpy(encoded / np.float32(math.sqrt(len(columns))))


def _cell(column: Column, cell: str, spelling: Spelling, features: int) -> list[Feature]:
    name = column.name
    if spelling.is_missing(cell):
        return [_hashed(name, "missing", features, 1.0)]
    if column.type != TEXT:
        number = None if column.type == DATE else spelling.number(cell)
        if number is not None and column.bounds is not None:
            return _hats(name, "bounded", _between(number, *column.bounds) * INTERVALS_BETWEEN_BOUNDS, features)
        if number is not None:
            return _hats(name, "number", math.asinh(number) / math.log(2) * KNOTS_PER_DOUBLING, features)
        if column.type == NUMBER or column.bounds is not None:
            declared = "has declared bounds" if column.bounds is not None else "is declared to hold numbers"
            raise _not_as_declared(column, declared, "a number")
        if column.type == DATE or spelling.finds_dates:
            day = spelling.date(cell, column.date_format)
            if day is not None:
                return _day(name, day, features)
        if column.type != ANY:
            raise _not_as_declared(column, "is declared to hold dates", "a date as it was declared")
    if column.categories is not None and cell not in column.categories:
        return [_hashed(name, "other", features, 1.0)]
    return [_hashed(name, "text " + cell, features, 1.0)]


def _not_as_declared(column: Column, declared: str, wanted: str) -> TaskDataError:
    return TaskDataError(
        f"it {declared}, and holds a cell that is not {wanted}",
        where=f"column {printable(column.name)!r}",
        cure="Take back what was declared, or repair the column",
    )


def _between(number: float, low: float, high: float) -> float:
    """Return where `number` lies between the bounds, from 0 to 1; beyond them it counts as at the bound."""
    return (min(max(number, low), high) - low) / (high - low)


def _day(column: str, day: date, features: int) -> list[Feature]:
    """Return year, time of the year and day of the week, which share a weight of 1 in square."""
    of_the_year = (day - date(day.year, 1, 1)).days / 366
    parts = [
        *_hats(column, "year", day.year + of_the_year, features),
        *_hats(column, "month", of_the_year * MONTHS, features, MONTHS),
        _hashed(column, f"weekday {day.weekday()}", features, 1.0),
    ]
    return [(bucket, value / math.sqrt(3)) for bucket, value in parts]


def _hats(column: str, kind: str, position: float, features: int, cycle: int | None = None) -> list[Feature]:
    """Return the two neighbouring knots of a position on a grid of whole numbers, weighted by nearness.

    With a `cycle` the grid is a ring of so many knots.
    """
    below = math.floor(position)
    share = position - below
    above = below + 1 if cycle is None else (below + 1) % cycle
    parts = [_hashed(column, f"{kind} {below}", features, 1.0 - share)]
    return parts if share == 0 else [*parts, _hashed(column, f"{kind} {above}", features, share)]


def _hashed(column: str, token: str, features: int, value: float) -> Feature:
    digest = hashlib.blake2b(f"{len(column)} {column} {token}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    return (number >> 1) % features, value if number & 1 else -value
