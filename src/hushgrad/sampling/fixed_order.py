"""The caller's own batches in the same order in every pass, so that a record comes back after a whole pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from hushgrad.accounting.events.event import Event
from hushgrad.accounting.events.fixed_order import FixedOrder
from hushgrad.accounting.events.fixed_order_buffered import FixedOrderBuffered
from hushgrad.arguments import whole_number
from hushgrad.errors import InvalidArgumentError, UnsupportedSamplerError
from hushgrad.randomness import KeyStream
from hushgrad.sampling.disjoint import CheckedBatches
from hushgrad.sampling.scheme import Batches, SamplingScheme
from hushgrad.strategies.buffered import BufferedStrategy
from hushgrad.strategies.strategy import Strategy


@dataclass(frozen=True)
class FixedOrderBatches(SamplingScheme):
    """The caller's own `steps_per_pass` disjoint batches, which come in the same order in every pass.

    For noise that is correlated between steps, without amplification by sampling: a record takes part every
    `steps_per_pass` steps. Batches that are shuffled anew in each pass break that, and are refused in the pass in which
    they do. The neighbouring relation is zero-out, as of `DisjointBatches`.

    Raises `InvalidArgumentError` unless steps_per_pass >= 1.
    """

    steps_per_pass: int

    counts_in: ClassVar[Literal["steps", "passes", "blocks"]] = "blocks"
    takes_batches: ClassVar[bool] = True
    can_be_declared: ClassVar[bool] = False  # nobody would see the order
    draws_afresh: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps_per_pass", whole_number("steps_per_pass", self.steps_per_pass, minimum=1))

    def sampler(self, population: int, stream: KeyStream, batches: Batches | None = None) -> OrderedBatches:
        """Return the caller's batches, counted and checked in every pass."""
        if batches is None:
            raise InvalidArgumentError("FixedOrderBatches needs batches", cure="Give the batches of indices of a pass")
        return OrderedBatches(batches, population, self.steps_per_pass)

    def event(self, noise_multiplier: float, index: int = 0) -> FixedOrder:
        """Return what one step of block `index` costs."""
        return FixedOrder(noise_multiplier, self.steps_per_pass, index)

    def correlated_event(self, noise_multiplier: float, strategy: Strategy, index: int = 0) -> Event | None:
        """Return what one step costs with a strategy of at most `steps_per_pass` bands, or a buffered one."""
        if isinstance(strategy, BufferedStrategy):
            return FixedOrderBuffered.of(noise_multiplier, self.steps_per_pass, strategy, index)
        return super().correlated_event(noise_multiplier, strategy, index)

    @property
    def min_separation(self) -> int:
        """The number of batches in a pass."""
        return self.steps_per_pass

    def inclusion_probability(self, population: int) -> float:
        """Return 1: which step a record takes part in is nothing that the charge counts on."""
        return 1.0

    def expected_batch_size(self, population: int) -> None:
        """Return None: the caller says how large batches are."""
        return None


class OrderedBatches:
    """`CheckedBatches` of which there are as many in every pass as the scheme says.

    Guarantee: no pass ends with another number of batches, and no record takes part twice in one pass.
    """

    def __init__(self, batches: Batches, count: int, steps_per_pass: int) -> None:
        self._batches, self._expected = CheckedBatches(batches, count), steps_per_pass

    def one_pass(self, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        """Yield the caller's batches in the caller's order.

        Raises:
            DuplicateRecordError: a record comes a second time.
            UnsupportedSamplerError: there are more or fewer batches, or an index is none.
        """
        found = 0
        for batch in self._batches.one_pass(steps, first_step):
            found += 1
            if found > self._expected:
                break
            yield batch
        if found != self._expected:
            raise UnsupportedSamplerError(
                f"a pass must have {self._expected} batches, as FixedOrderBatches says, and this one has "
                f"{'more' if found > self._expected else found}",
                cure="Give FixedOrderBatches the number of batches in a pass, and the same batches every time",
            )
