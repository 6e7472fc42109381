"""Whose each row is: people are held out whole, have at most so many training rows, and are drawn whole.

Which people are held out, and which rows of one person are kept, follow from digests under a public constant. They are
as good as drawn at random, the same for every run and everybody, and a function of that person's rows alone: a person
more or less changes nothing of all others.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from hushgrad.errors import DatasetError
from hushgrad.sampling.ownership import UserIds, user_ids
from hushgrad.sampling.users import UserSampling

LONGEST_NAME = 100
_PARTS = 1 << 64


@dataclass(frozen=True, eq=False, slots=True)
class People:
    """The person of each training row.

    Attributes:
        ids: of the training rows, in their order.
        at_most: the declared bound on the rows of one person.
        told_by: the column that tells people from each other.
    """

    ids: UserIds = field(repr=False)
    at_most: int
    told_by: str

    @classmethod
    def of(cls, people: Sequence[str], at_most: int, told_by: str) -> People:
        """Return the people of rows, from one id for each row."""
        return cls(user_ids(list(people)), at_most, told_by[:LONGEST_NAME])

    @property
    def count(self) -> int:
        """How many people have a training row."""
        return self.ids.users

    def sampling(self, batch_size: float) -> UserSampling:
        """Return the sampling that draws `batch_size` people in a step on average, each with all of their rows.

        Raises DatasetError for more than there are.
        """
        if batch_size > self.count:
            raise DatasetError(
                f"must be at most the {self.count} people in the training rows, got {batch_size:g}",
                where="batch_size",
                cure=f"Choose {self.count} or less: it counts people, not rows",
            )
        return UserSampling.with_expected_users(
            batch_size, users=self.ids, examples_per_user=self.at_most, told_by=self.told_by
        )


def split_people(people: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the rows of those who train and of those who are held out, about `share` of all people.

    Guarantee: all rows of a person are on one side, and which one depends on that person's id alone.
    """
    held_out = {person: _number(seed, "held out", person) < share * _PARTS for person in set(people)}
    sides: tuple[list[int], list[int]] = ([], [])
    for row, person in enumerate(people):
        sides[held_out[person]].append(row)
    return sides


def bounded_rows(people: Sequence[str], at_most: int, seed: int) -> list[int]:
    """Return which rows to keep so that no person has more than `at_most`, ascending.

    Guarantee: which rows of a person are kept depends on that person's id and number of rows alone.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, person in enumerate(people):
        rows_of[person].append(row)
    kept: list[int] = []
    for person, rows in rows_of.items():
        order = sorted((_number(seed, f"kept {place}", person), row) for place, row in enumerate(rows))
        kept += [row for _, row in order[:at_most]]
    return sorted(kept)


def _number(seed: int, purpose: str, person: str) -> int:
    """Return a number from 0 to _PARTS − 1 that a person has for a purpose."""
    digest = hashlib.blake2b(f"{seed} {purpose} {person}".encode(), digest_size=8, person=b"hushgrad people").digest()
    return int.from_bytes(digest, "big")
