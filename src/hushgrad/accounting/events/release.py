"""A statistic that was released beside training: a noised sum over all records, and no step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from hushgrad.accounting.events.costs import Costs
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, RELATIONS, REPLACE_ONE, ZERO_OUT, Event
from hushgrad.arguments import non_negative_number, one_of
from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable

_LONGEST = 400


@dataclass(frozen=True, slots=True)
class _Released(Event):
    """One release of a sum over all records, each of which adds a vector of norm at most C, with Gaussian noise.

    `noise_multiplier` (no unit): standard deviation of the noise over C. `query`: what was asked, with its public
    constants, in one line. `distance`: of the law of the noise in all values from rounded Gaussian noise, in total
    variation; δ is larger by (1 + e^ε) times that.
    """

    noise_multiplier: float
    query: str
    distance: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        object.__setattr__(self, "distance", non_negative_number("distance", self.distance))
        if not isinstance(self.query, str):
            raise InvalidArgumentError(
                f"must be text, got {type(self.query).__name__}", where="query", cure="Say what was asked in one line"
            )
        object.__setattr__(self, "query", printable(self.query, _LONGEST))

    def add_to(self, costs: Costs, count: int) -> None:
        """Add the releases as they are."""
        costs.add_release(self.noise_multiplier, count)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return that every record took part, and in how many releases."""
        number = sum(count for _, count in ran)
        many = f"{number} release{'' if number == 1 else 's'} of a statistic"
        return f"every record in {many}" if alone else f"every record in {many} beside the steps"

    @property
    def is_step(self) -> bool:
        """No: nothing was trained."""
        return False

    @property
    def distance_of_noise(self) -> float:
        """The distance of its own."""
        return self.distance


@dataclass(frozen=True, slots=True)
class Release(_Released):
    """A release where a record is added or removed: the sum moves by at most C."""

    type: ClassVar[str] = "release"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ADD_REMOVE_ONE


@dataclass(frozen=True, slots=True)
class ZeroedOutRelease(_Released):
    """A release where a record is replaced by one that adds nothing: the sum moves by at most C."""

    type: ClassVar[str] = "release_zero_out"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ZERO_OUT


@dataclass(frozen=True, slots=True)
class ReplacedRelease(_Released):
    """A release where a record is replaced by any other: the sum moves by at most 2C."""

    type: ClassVar[str] = "release_replace_one"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = REPLACE_ONE

    def add_to(self, costs: Costs, count: int) -> None:
        """Add the releases with the noise over 2C, which is what a replacement changes."""
        costs.add_release(self.noise_multiplier / 2, count)


_OF_RELATION: dict[str, type[_Released]] = {
    kind.adjacency: kind for kind in (Release, ZeroedOutRelease, ReplacedRelease)
}


def release_under(adjacency: str, noise_multiplier: float, query: str, distance: float = 0.0) -> Event:
    """Return the event of a release whose cost is told under a neighbouring relation."""
    return _OF_RELATION[one_of("adjacency", adjacency, RELATIONS)](noise_multiplier, query, distance)
