"""Cells of a table as numbers, by a fixed rule that learns nothing from the data.

A vocabulary, a mean or a quantile taken from private records is outside every ε. So nothing is fitted here: a row's
features are a function of that row alone, of the column names and of what the user declares.

- Text: the pair (column, text) is hashed to a bucket and a sign (Weinberger et al. 2009, "Feature hashing").
- A number x without declared bounds: asinh(x) on a fixed grid of four knots per doubling; the two knots beside it share
  a weight of 1 (a hat function each), and each knot is hashed like text. Nearby numbers get nearby features at every
  scale from 10⁻² to 10³⁰⁸, with no scaling to choose.
- A number with declared bounds: the same with 16 equal intervals between the bounds; what lies outside is clamped.
- A missing cell is a text of its own.

A model that is linear in these features is an additive model, piecewise linear in every column.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hushgrad.errors import TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks.table import Table, is_missing

KNOTS_PER_DOUBLING = 4
INTERVALS_BETWEEN_BOUNDS = 16
MAX_FEATURE_BYTES = 4 << 30

Feature = tuple[int, float]


def number_of_features(columns: int) -> int:
    """Return how many hash buckets to use for a table: a power of two, about 64 per column, 256 to 4096."""
    return 1 << min(12, max(8, math.ceil(math.log2(64 * columns))))


def encode(
    table: Table,
    columns: tuple[str, ...],
    *,
    categorical: frozenset[str] = frozenset(),
    bounds: Mapping[str, tuple[float, float]] | None = None,
    features: int,
) -> Tensor:
    """Return the features of the named columns of every row, [N, features], float32, rows of norm about 1.

    Guarantee: a row's features depend on that row alone; adding, removing or changing other rows changes nothing.
    Raises TaskDataError if a column with declared bounds holds something that is not a number, or if the result would
    not fit in memory.
    """
    declared = bounds or {}
    rows = len(table.rows)
    if rows * features * 4 > MAX_FEATURE_BYTES:
        raise TaskDataError(
            f"{rows} rows of {features} features are more than fit into memory", cure="Use fewer rows, or drop columns"
        )
    row_of: list[int] = []
    bucket_of: list[int] = []
    value_of: list[float] = []
    for name in columns:
        # Columns repeat their values; each distinct cell is hashed once.
        known: dict[str, list[Feature]] = {}
        for row, cell in enumerate(table.column(name)):
            found = known.get(cell)
            if found is None:
                found = known[cell] = _cell(name, cell, name in categorical, declared.get(name), features)
            for bucket, value in found:
                row_of.append(row)
                bucket_of.append(bucket)
                value_of.append(value)
    encoded = np.zeros((rows, features), dtype=np.float32)
    places = np.asarray(row_of, dtype=np.int64), np.asarray(bucket_of, dtype=np.int64)
    np.add.at(encoded, places, np.asarray(value_of, dtype=np.float32))
    return torch.from_numpy(encoded / np.float32(math.sqrt(len(columns))))


def _cell(
    column: str, cell: str, categorical: bool, bounds: tuple[float, float] | None, features: int
) -> list[Feature]:
    if is_missing(cell):
        return [_hashed(column, "missing", features, 1.0)]
    number = None if categorical else _number(cell)
    if bounds is not None:
        if number is None:
            raise TaskDataError(
                "it has declared bounds, and holds a cell that is not a number",
                where=f"column {printable(column)!r}",
                cure="Remove its bounds, or repair the column",
            )
        return _hats(column, "bounded", _between(number, *bounds) * INTERVALS_BETWEEN_BOUNDS, features)
    if number is None:
        return [_hashed(column, "text " + cell, features, 1.0)]
    return _hats(column, "number", math.asinh(number) / math.log(2) * KNOTS_PER_DOUBLING, features)


def _number(cell: str) -> float | None:
    """Return the finite number that a cell spells, or None."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _between(number: float, low: float, high: float) -> float:
    """Return where `number` lies between the bounds, from 0 to 1; beyond them it counts as at the bound."""
    return (min(max(number, low), high) - low) / (high - low)


def _hats(column: str, kind: str, position: float, features: int) -> list[Feature]:
    """Return the two neighbouring knots of a position on a grid of whole numbers, weighted by nearness."""
    below = math.floor(position)
    share = position - below
    parts = [_hashed(column, f"{kind} {below}", features, 1.0 - share)]
    return parts if share == 0 else [*parts, _hashed(column, f"{kind} {below + 1}", features, share)]


def _hashed(column: str, token: str, features: int, value: float) -> Feature:
    digest = hashlib.blake2b(f"{len(column)} {column} {token}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    return (number >> 1) % features, value if number & 1 else -value
