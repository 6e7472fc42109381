"""Whole users are drawn: user-level sampling, for privacy of a person with several records.

Charles et al. (2024, arXiv:2407.07737), ULS: every user is drawn with the same probability, the gradient of all their
records is clipped as one, and a step costs a user what a step of Poisson sampling costs a record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hushgrad.accounting.conditions import ONE_RECORD_IS_ALL, USERS_TOLD, Condition
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.arguments import one_of, positive_number, probability, whole_number
from hushgrad.errors import DatasetError, InvalidArgumentError
from hushgrad.randomness import KeyStream
from hushgrad.sampling.ownership import Ownership, UserIds, user_ids
from hushgrad.sampling.poisson import PoissonSampler
from hushgrad.sampling.scheme import Batches, Sampler, SamplingScheme


@dataclass(frozen=True, kw_only=True)
class UserSampling(SamplingScheme):
    """Every user takes part in every step independently with probability `rate`, with all of their records.

    A user's gradient is that of all their records, clipped once to the clip norm, so that ε is about the presence of
    one user: everything that any of their records did. The sum is divided by B = `rate` · (number of users), not by a
    number of records. A user's records are never parted: an item holds all of them or none.

    Privacy does not rest on `examples_per_user` where users are drawn; memory does, and the guarantee names it. A
    maximum that is read off the data is no bound: declare one, and hold to it by `bounded_contributions`.

    Attributes:
        rate: q, in (0, 1], a public constant.
        users: whose each record is: one id (a whole number or a text) for each record of the data set, in its order.
            None where each record of the data set is all that a user has, so that a model or a loss may mix what is in
            it: one item of `[k, ...]` for a user.
        examples_per_user: the declared bound on the records of one user, a public constant; None for `users` None.
        population: the number of users, a declared public constant. By default those with a record, by their use
            declared; say a greater number where users may have none, so that it does not follow from the data.
        gradient: "mean", the mean of the gradients of a user's records, so that users with many and with few records
            count alike and C is of the size of one record's gradient; or "sum".
        told_by: how users are told from each other, for the guarantee: the name of the column, say.

    Raises:
        InvalidArgumentError: an argument out of range, or ids that are none.
        DatasetError: a user with more records than the bound that was declared.
    """

    rate: float
    users: Any = field(repr=False)
    examples_per_user: int | None = None
    population: int | None = None
    gradient: str = "mean"
    told_by: str = "user"

    can_be_declared: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", probability("rate", self.rate))
        one_of("gradient", self.gradient, ("mean", "sum"))
        _require_line(self.told_by)
        if self.population is not None:
            object.__setattr__(self, "population", whole_number("population", self.population, minimum=1))
        if self.users is None:
            if self.examples_per_user is not None:
                raise InvalidArgumentError(
                    "it bounds the records of a user, and without users each record is all that a user has",
                    where="examples_per_user",
                    cure="Leave it out, or pass users, one id for each record",
                )
            return
        ids = user_ids(self.users)
        object.__setattr__(self, "users", ids)
        _require_bound(ids, self.examples_per_user)
        if self.population is not None and self.population < ids.users:
            raise InvalidArgumentError(
                f"must be at least the number of users that have a record, got {self.population}",
                where="population",
                cure="Count all users, those without a record included",
            )

    @classmethod
    def with_expected_users(cls, expected: float, *, users: Any, **more: Any) -> UserSampling:
        """Return the sampling that draws `expected` users in a step on average: rate = expected / number of users."""
        size, ids = positive_number("expected", expected), user_ids(users)
        count = more.get("population") or ids.users
        if size > count:
            raise InvalidArgumentError(
                f"must be at most the number of users ({count}), got {size:g}",
                where="expected",
                cure="Draw at most all users",
            )
        return cls(rate=size / count, users=ids, **more)

    def sampler(self, population: int, stream: KeyStream, batches: Batches | None = None) -> Sampler:
        """Return what draws whole users of a data set with `population` records."""
        if self.users is None:
            return PoissonSampler(population, self.rate, stream)
        _require_ids_of(self.users, population)
        return UserSampler(self.users, self.rate, stream)

    def event(self, noise_multiplier: float, index: int = 0) -> PoissonSampled:
        """Return what one step costs a user: a step of Poisson sampling with the rate of users."""
        return PoissonSampled(self.rate, noise_multiplier)

    def inclusion_probability(self, population: int) -> float:
        """Return the rate, that of every user and of each of their records."""
        return self.rate

    def expected_batch_size(self, population: int) -> float:
        """Return B = rate · (number of users)."""
        return self.rate * self.units_in(population)

    def units_in(self, records: int) -> int:
        """Return the number of users."""
        return self.population or (records if self.users is None else self.users.users)

    @property
    def unit(self) -> str:
        """One user, how they are told, and how many records they have at most."""
        if self.users is None:
            return f"one user (each record of the data set is all that one {self.told_by} has)"
        return f"one user (all records with the same {self.told_by}, at most {self.examples_per_user} of them)"

    @property
    def ownership(self) -> Ownership | None:
        """Whose each record is; None where each is a user's."""
        if self.users is None:
            return None
        return Ownership(self.users, self.examples_per_user or 0, self.gradient == "mean")

    @property
    def on_trust(self) -> tuple[Condition, ...]:
        """That records are whose the ids say."""
        return (ONE_RECORD_IS_ALL,) if self.users is None else (USERS_TOLD,)

    def describe(self) -> str:
        """Return in words how a step is drawn."""
        return f"Poisson, every user independently with rate {self.rate:.6g} in every step"


class UserSampler:
    """Draws whole users, every one independently with the exact probability `rate` (see `PoissonSampler`).

    Guarantee: a draw holds all records of a user or none of them.
    """

    def __init__(self, ids: UserIds, rate: float, stream: KeyStream) -> None:
        self._ids, self._users = ids, PoissonSampler(ids.users, rate, stream)

    def one_pass(self, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        """Yield the records of the users that are drawn in `steps` consecutive steps."""
        for step in range(first_step, first_step + steps):
            yield tuple(self._ids.records_of(self._users.draw(step)).tolist())


def _require_bound(ids: UserIds, declared: int | None) -> None:
    if declared is None:
        raise InvalidArgumentError(
            "must be declared: the most records that one user has",
            where="examples_per_user",
            cure="Pass a constant that was chosen without looking at these data, and hold to it: "
            "kept = bounded_contributions(users, at_most=k)",
        )
    most = whole_number("examples_per_user", declared, minimum=1)
    if ids.most > most:
        raise DatasetError(
            f"some users have more records than the {most} that were declared",
            where="examples_per_user",
            cure=f"Keep a random choice of at most {most} for each user: kept = bounded_contributions(users, "
            f"at_most={most}), dataset = Subset(dataset, kept), users = [users[i] for i in kept]. Do not declare the "
            f"greatest number that is found in the data: one user decides it",
        )


def _require_ids_of(ids: UserIds, records: int) -> None:
    if ids.records != records:
        raise InvalidArgumentError(
            f"there are {ids.records} ids, and the data set has {records} records",
            where="users",
            cure="Pass one id for each record of this data set, in its order",
        )


def _require_line(told_by: object) -> None:
    if not (isinstance(told_by, str) and told_by and told_by.isprintable() and len(told_by) <= 100):
        raise InvalidArgumentError(
            "must be a short line of text", where="told_by", cure='Pass the name of the column: told_by="patient_id"'
        )
