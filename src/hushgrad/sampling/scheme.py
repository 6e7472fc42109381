"""A sampling scheme: which examples take part in which step, and what that makes of a step's charge.

A kind is a file: a frozen dataclass of public constants, and its sampler. Whoever needs to know something of a scheme
asks the scheme; nobody else asks which kind it is (a test reads the sources).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol

from hushgrad.accounting.conditions import Condition
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.ledger.contract import ONE_RECORD
from hushgrad.arguments import one_of
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import KeyStream
from hushgrad.sampling.ownership import Ownership
from hushgrad.strategies.strategy import Strategy

Batches = Iterable[Sequence[int]]
"""The caller's own batches of indices, iterated anew in every pass."""


class Allocation(NamedTuple):
    """`bins`: the steps of a pass; `participations`: in how many of them, at random, every record takes part."""

    bins: int
    participations: int


class Sampler(Protocol):
    """Draws logical batches of one data set, for one loader."""

    def one_pass(self, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        """Yield the indices of each logical batch of a pass that has `steps` of them, possibly none.

        `first_step` is the number of the first one, over the life of the loader; no number comes twice, so that it can
        be the step of an `Address`. A pass that is broken off has used the numbers of what was drawn.
        """


class SamplingScheme(ABC):
    """How the examples of a step are drawn, as a frozen value that can be compared.

    Attributes:
        counts_in: what a charge is counted in: "steps", each of which is a release of its own; "passes" over the data,
            of which a record takes part in one step at most (or in as many as `allocation` says): its event then
            belongs to a pass (`data_pass`), and the loader refuses a record that comes more often in one; or "blocks",
            unbroken runs of steps, whose cost follows from their length: its event then belongs to a block
            (`in_block`). Only steps have schedules.
        takes_batches: whether the batches are the caller's own.
        can_be_declared: whether a loop without hushgrad's loader may be charged for it, at the caller's word. Never
            for one that is counted in passes: nobody would see where a pass ends.
        draws_afresh: whether each step is drawn independently of all others.
    """

    counts_in: ClassVar[Literal["steps", "passes", "blocks"]] = "steps"
    takes_batches: ClassVar[bool] = False
    can_be_declared: ClassVar[bool] = True
    draws_afresh: ClassVar[bool] = True

    @abstractmethod
    def sampler(self, population: int, stream: KeyStream, batches: Batches | None = None) -> Sampler:
        """Return what draws from range(population).

        Draw from `stream` alone: it is this sampler's own, and secret, which amplification needs. `batches` are given
        where `takes_batches` says so. Raises `InvalidArgumentError` where the scheme is for another population.
        """

    @abstractmethod
    def event(self, noise_multiplier: float, index: int = 0) -> Event:
        """Return what one step costs with Gaussian noise that is independent in every step.

        `noise_multiplier` is the standard deviation of the noise over the sensitivity; `index` numbers what the scheme
        counts in, passes over the data or blocks, over the whole account. An event of a kind of one's own is registered
        (`hushgrad.accounting.register_event`).
        """

    def correlated_event(self, noise_multiplier: float, strategy: Strategy, index: int = 0) -> Event | None:
        """Return what one step costs with noise C⁻¹Z of a strategy C; None where nobody has proven what it does.

        `noise_multiplier` is the standard deviation of Z over the sensitivity. Where no two steps that a record takes
        part in share a row of the strategy, each of them costs what a step with independent noise does. Kinds that are
        charged otherwise say more.
        """
        is_apart = strategy.bands is not None and strategy.bands <= self.min_separation
        return self.event(noise_multiplier, index) if is_apart else None

    @property
    def min_separation(self) -> int:
        """How many steps lie at least between two that a record takes part in, from one to the other: 1 for next ones.

        The loader refuses a draw that breaks it.
        """
        return 1

    @abstractmethod
    def inclusion_probability(self, population: int) -> float:
        """Return the probability of a record to take part in a step; where records differ, the greatest."""

    @abstractmethod
    def expected_batch_size(self, population: int) -> float | None:
        """Return B, the size that a step is expected to have; None where it is the caller's to say."""

    @property
    def largest_batch(self) -> int | None:
        """The most records that a step can have, where that is a public constant less than all; else None."""
        return None

    @property
    def poisson_rate(self) -> float | None:
        """The rate with which every record is drawn, independently of all, before a random cut to `largest_batch`.

        None where records are drawn otherwise.
        """
        return None

    @property
    def allocation(self) -> Allocation | None:
        """Where every record takes part in exactly so many random steps of a pass, independently of all others.

        None where records are drawn otherwise.
        """
        return None

    @property
    def unit(self) -> str:
        """Whose presence is protected, in words, for the ledger and the guarantee."""
        return ONE_RECORD

    def units_in(self, records: int) -> int:
        """Return how many of them a data set of so many records has, a declared public constant."""
        return records

    @property
    def ownership(self) -> Ownership | None:
        """Whose each record is, where whole users take part and each of them is clipped as one; else None.

        The loader refuses a draw that holds some of a user's records and not all, and never parts them.
        """
        return None

    @property
    def on_trust(self) -> tuple[Condition, ...]:
        """What is said of the data and nobody sees: it is in every guarantee."""
        return ()

    @property
    def adjacency(self) -> str:
        """The neighbouring relation that a step is charged under, in the words of its event."""
        return self.event(1.0).adjacency

    def describe(self) -> str:
        """Return in words how a step is drawn: the words of its event."""
        event = self.event(1.0)
        return type(event).sentence([(event, 1)], alone=True)


def require_scheme(sampling: object) -> SamplingScheme:
    """Return `sampling`, or raise `InvalidArgumentError` where it is no sampling scheme."""
    if not isinstance(sampling, SamplingScheme):
        raise InvalidArgumentError(
            f"sampling must be a sampling scheme, got {type(sampling).__name__}",
            cure="Give PoissonSampling(rate), TruncatedPoissonSampling(rate, population, max_batch_size), "
            "BallsInBinsSampling(bins), FixedSizeSampling(batch_size, population), DisjointBatches(), "
            "CyclicPoissonSampling(rate, cycle), FixedOrderBatches(steps_per_pass), UserSampling(rate=, users=, "
            "examples_per_user=) or a SamplingScheme of your own",
        )
    one_of("counts_in", sampling.counts_in, ("steps", "passes", "blocks"))
    return sampling
