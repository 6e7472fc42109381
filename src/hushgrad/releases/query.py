"""What is asked of the records: a sum of one vector for each, of bounded norm, and what is made of the noised sum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hushgrad.errors import HushgradError, InvalidArgumentError
from hushgrad.printable import full_name

Read: TypeAlias = Callable[[Any], Any]
"""What is taken from one record of the dataset; it is given this record alone."""


class Query(ABC):
    """A question to all records. A kind is a frozen dataclass of public constants, and of what reads a record.

    `width`: d, how many values are released. `sensitivity`: the largest norm (L2) of what one record adds to them.
    """

    @property
    @abstractmethod
    def width(self) -> int:
        """How many values are released, d."""

    @property
    @abstractmethod
    def sensitivity(self) -> float:
        """The largest L2 norm of what one record adds to the sum; `total` sees to it."""

    @abstractmethod
    def row(self, record: Any) -> Tensor:
        """Return what is read of one record: a float64 vector, as long for all of them."""

    @abstractmethod
    def total(self, rows: Tensor) -> Tensor:
        """Return the sum of what these records add, float64 `[d]`.

        Guarantee: one record moves the sum by at most the sensitivity, whatever is in it; one that is not finite adds
        nothing.

        Args:
            rows: float64 `[n, k]`, the rows of n records.
        """

    @abstractmethod
    def answer(self, noised: Tensor, population: int, noise_std: float) -> Any:
        """Return what was asked for, from the noised sum and public numbers alone.

        Args:
            noised: float64 `[d]`.
            population: N, the number of records, which is public.
            noise_std: standard deviation of the noise on each value of the sum.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return the question with its public constants, in one printable line, for the ledger."""

    @property
    def readers(self) -> tuple[Any, ...]:
        """The caller's code that a record goes through: `of`, where there is one."""
        of = getattr(self, "of", None)
        return () if of is None else (of,)

    def while_reading(self) -> AbstractContextManager[None]:
        """Return what has to hold while rows are read."""
        return nullcontext()


def vector_of(value: Any, size: int | None = None) -> Tensor:
    """Return a value as a float64 vector on the CPU.

    Raises `InvalidArgumentError`, without the value, where it is none, or not `size` long.
    """
    try:
        found = torch.as_tensor(value, dtype=torch.float64).detach().reshape(-1).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InvalidArgumentError(
            f"what is read of a record must be numbers, got {type(value).__name__}",
            where="a release",
            cure="Pass a function of one record that returns numbers, of=lambda record: record[0] for instance",
        ) from None
    if size is not None and len(found) != size:
        raise InvalidArgumentError(
            f"what is read of a record must be {size} numbers, and is {len(found)}",
            where="a release",
            cure="Pass the size that all records have",
        )
    return found


def read_by(of: Read | None, record: Any) -> Any:
    """Return what `of` reads of a record; the record itself without one.

    Raises `InvalidArgumentError` naming the kind of what the caller's function raised: its text may hold a value.
    """
    if of is None:
        return record
    try:
        return of(record)
    except HushgradError:
        raise
    except Exception as error:
        raise InvalidArgumentError(
            f"it raised {type(error).__name__} for a record",
            where=full_name(of),
            cure="Let it return numbers for every record; one that cannot be read may return NaN, and adds nothing",
        ) from None


def clipped(rows: Tensor, limit: float) -> Tensor:
    """Return rows with norms of at most `limit`, rounding included; one that is not finite becomes 0."""
    largest = rows.abs().amax(dim=1, keepdim=True) if rows.shape[1] else rows.new_zeros(len(rows), 1)
    is_finite = torch.isfinite(largest)
    scale = torch.where(is_finite & (largest > 0), largest, 1.0)
    unit = torch.where(is_finite, rows, 0.0) / scale  # no square overflows
    norms = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    factors = torch.where(norms * scale > limit, limit / norms * (1 - 2.0**-40), scale)
    return unit * factors
