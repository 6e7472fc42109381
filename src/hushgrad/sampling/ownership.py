"""Whose each record is: where whole users are drawn, clipped and protected, and not single records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hushgrad.errors import InvalidArgumentError

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class UserIds:
    """The user of each record of a data set, as numbers from 0; made of any ids by `user_ids`.

    Whose a record is says as much of people as the record does: nothing of it is printed.

    Attributes:
        codes: of each record the number of its user, `[N]`, int64.
        sizes: of each user how many records are theirs, `[users]`, int64, at least 1.
    """

    codes: Numbers = field(repr=False)
    sizes: Numbers = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_order", np.argsort(self.codes, kind="stable"))
        object.__setattr__(self, "_ends", np.cumsum(self.sizes))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UserIds) and np.array_equal(self.codes, other.codes)

    def __hash__(self) -> int:
        return hash((self.records, self.users))

    @property
    def records(self) -> int:
        """N, the number of records."""
        return len(self.codes)

    @property
    def users(self) -> int:
        """The number of users that have a record."""
        return len(self.sizes)

    @property
    def most(self) -> int:
        """The most records that one user has. It is a fact of the data, and no bound that may be declared."""
        return int(self.sizes.max())

    def records_of(self, users: Numbers) -> Numbers:
        """Return the records of these users, those of one behind the other, each user's in ascending order."""
        if not len(users):
            return np.empty(0, np.int64)
        sizes, ends = self.sizes[users], self._ends[users]  # type: ignore[attr-defined]
        # Of each record drawn its place among all records in the order of their users.
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        found: Numbers = self._order[np.repeat(ends - sizes, sizes) + within]  # type: ignore[attr-defined]
        return found

    def holds_whole_users(self, records: Numbers) -> bool:
        """Return whether different records are all those of some users."""
        users, counts = np.unique(self.codes[records], return_counts=True)
        return bool((counts == self.sizes[users]).all())


@dataclass(frozen=True, slots=True)
class Ownership:
    """That whole users take part in a step.

    Attributes:
        ids: whose each record is.
        most: the declared bound on the records of one user, a public constant.
        averages: whether a user's gradient is the mean of that of their records, or else the sum.
    """

    ids: UserIds
    most: int
    averages: bool


def user_ids(users: Any) -> UserIds:
    """Return the users of records from one id for each record: whole numbers or texts, in a sequence or an array.

    Raises `InvalidArgumentError` for what is no such sequence, and for a record without an id.
    """
    if isinstance(users, UserIds):
        return users
    if isinstance(users, str | bytes) or not hasattr(users, "__len__") or not hasattr(users, "__getitem__"):
        raise _no_ids(f"must be a sequence with one id for each record, got {type(users).__name__}")
    if isinstance(users, np.ndarray) and users.ndim == 1 and users.dtype.kind in "iu" and len(users):
        return UserIds(*_numbered_by_sorting(users))
    values = users.tolist() if hasattr(users, "tolist") else list(users)
    if not values:
        raise _no_ids("must have an id for each record, and is empty")
    kinds = {type(value) for value in values}
    if any(value is None or (isinstance(value, float) and math.isnan(value)) for value in values):
        raise InvalidArgumentError(
            "some records have no id (None or NaN), so that it is not known whose they are",
            where="users",
            cure="Leave these records out, or give each of them an id of its own",
        )
    if not all(issubclass(kind, int | str) and kind is not bool for kind in kinds) or len(kinds) > 1:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise _no_ids(f"must hold whole numbers or texts of one type, got {found}")
    return UserIds(*_numbered(values))


def _numbered(values: Sequence[Any]) -> tuple[Numbers, Numbers]:
    numbers: dict[Any, int] = {}
    codes = np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), np.int64, len(values))
    return codes, np.bincount(codes)


def _numbered_by_sorting(values: NDArray[Any]) -> tuple[Numbers, Numbers]:
    """Return the same for an array of whole numbers, in a few seconds for a hundred million."""
    _, first, inverse, counts = np.unique(values, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)  # users are numbered as they come
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    return numbers[inverse].astype(np.int64), counts[order].astype(np.int64)


def _no_ids(what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        what, where="users", cure='Pass the column of ids, in the order of the records: users=table["user_id"]'
    )
