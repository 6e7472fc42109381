"""The sum over all records of what a query reads of each, one record at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError, DatasetError, HushgradError, InvalidArgumentError, where_raised
from hushgrad.guards.probing.state import State
from hushgrad.printable import full_name
from hushgrad.releases.query import Query

CHUNK = 1024
LOOKED_AT_AGAIN = 16
_UNIT = 2.0**-53


def number_of_records(data: Any) -> int:
    """Return N. Raises `DatasetError` for what has no length or no record."""
    try:
        count = len(data)
    except TypeError:
        raise DatasetError(
            f"a release needs data with a length, got {type(data).__name__}",
            cure="Pass a map-style dataset, a tensor or a list with one entry for each record",
        ) from None
    if count < 1:
        raise DatasetError("there is no record", cure="Pass a dataset with records")
    return count


def sum_over(query: Query, data: Any) -> Tensor:
    """Return Σ_i of what each record of `data` adds, float64 `[d]`, without noise: not for release.

    Guarantee: one record moves the sum by at most the sensitivity, and rounding moves a sum of many records by no more
    than `error_of_sum` says.

    Each record is read by itself. Some are read again at the end, as the reading has left function and model, and as
    they were before any record: what has become another is no function of the record alone (a function or a model that
    remembers earlier ones, the first one say, or draws random numbers). They are given back as they were before.

    Raises:
        CrossSampleLeakError: so it is.
        InvalidArgumentError: what was read of a record has no fixed form, or what reads it raised.
        DatasetError: the dataset raised.
    """
    count = number_of_records(data)
    again = {place * (count - 1) // max(LOOKED_AT_AGAIN - 1, 1) for place in range(LOOKED_AT_AGAIN)}
    kept: list[tuple[Any, Tensor]] = []
    total = torch.zeros(query.width, dtype=torch.float64)
    with torch.no_grad(), query.while_reading():
        before = [State(part, parameters=False, aside=data) for part in query.readers]
        for first in range(0, count, CHUNK):
            rows = []
            for index in range(first, min(first + CHUNK, count)):
                record = _record(data, index)
                rows.append(_row(query, record))
                if index in again:
                    kept.append((record, rows[-1].clone()))
            total += query.total(_stacked(rows))
        _require_same(query, kept)
        for state in before:
            state.restore()
        try:
            _require_same(query, kept)
        finally:
            for state in before:
                state.restore()
    return total


def _record(data: Any, index: int) -> Any:
    """Return a record. Raises `DatasetError` naming the kind of what the dataset raised: its text may hold a value."""
    try:
        return data[index]
    except HushgradError:
        raise
    except Exception as error:
        raise DatasetError(
            f"it raised {type(error).__name__} for a record",
            where=full_name(type(data)),
            cure="Let it return a constant record where one cannot be read",
        ) from None


def _row(query: Query, record: Any) -> Tensor:
    """Return what a query reads of a record. Raises `InvalidArgumentError` without the text of what was raised."""
    try:
        return query.row(record)
    except HushgradError:
        raise
    except Exception as error:
        raise InvalidArgumentError(
            f"what is read of a record is nothing that can be asked for, or the model does not take it "
            f"({where_raised(error)})",
            where=f"a release, {query.describe()}",
            cure="Let the function return what the query says, numbers that float64 holds, for every record",
        ) from None


def _require_same(query: Query, kept: list[tuple[Any, Tensor]]) -> None:
    for record, row in reversed(kept):
        if not _is_same(_row(query, record), row):
            raise CrossSampleLeakError(
                "a record was read again, and gave something else: what is read of it does not follow from this "
                "record alone (it remembers earlier ones, writes into the record, or draws random numbers)",
                where=f"a release, {query.describe()}",
                cure="Pass a function of one record that keeps nothing and draws nothing, and a model that keeps "
                "nothing",
            )


def error_of_sum(query: Query, count: int) -> float:
    """Return how far rounding in float64 may have moved the sum of `count` records, as an L2 norm.

    Sums of k values one after another, then of m such sums, err by at most (k + m) · 2^-53 · Σ|x|; so do products of
    matrices, and clipping and squares by a few more.
    """
    additions = min(count, CHUNK) + -(-count // CHUNK) + 8
    return additions * _UNIT * count * query.sensitivity


def _stacked(rows: list[Tensor]) -> Tensor:
    if len({len(row) for row in rows}) > 1:
        raise InvalidArgumentError(
            "what is read of a record is of another length for some of them",
            where="a release",
            cure="Return as many numbers for every record",
        )
    return torch.stack(rows)


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-5, atol=1e-8, equal_nan=True)
