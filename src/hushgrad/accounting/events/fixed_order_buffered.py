"""A step over batches of fixed order with noise of a buffered strategy, which is shared by all steps of a block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from hushgrad.accounting.events.costs import Costs
from hushgrad.accounting.events.event import ZERO_OUT
from hushgrad.accounting.events.fixed_order import FixedOrder, in_words
from hushgrad.accounting.events.numbered import StepOfBlock
from hushgrad.errors import InvalidArgumentError
from hushgrad.strategies.buffered import BufferedStrategy
from hushgrad.strategies.strategy import hexadecimal


@dataclass(frozen=True, slots=True)
class FixedOrderBuffered(StepOfBlock):
    """As `FixedOrder`, with noise C⁻¹Z of the `BufferedStrategy` C of these `decays` and `weights`.

    n consecutive steps are one Gaussian release of sensitivity ‖C·u‖, u the record that takes part in the first batch
    of each pass: no other pattern adds up to more (Kalinin & Lampert 2024, arXiv:2405.13763, theorem 2). It grows with
    n, so what a prefix costs is never more than what a longer run does.

    `noise_multiplier` is the standard deviation of Z over the clip norm. `decays` and `weights` are hexadecimal
    floating-point numbers, separated by ", ", so that no digit is lost.
    """

    noise_multiplier: float
    steps_per_pass: int
    decays: str
    weights: str
    block: int

    type: ClassVar[str] = "fixed_order_buffered_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ZERO_OUT

    def __post_init__(self) -> None:
        plain = FixedOrder(self.noise_multiplier, self.steps_per_pass, self.block)
        object.__setattr__(self, "noise_multiplier", plain.noise_multiplier)
        object.__setattr__(self, "steps_per_pass", plain.steps_per_pass)
        object.__setattr__(self, "block", plain.block)
        strategy = self.strategy
        object.__setattr__(self, "decays", hexadecimal(strategy.decays))
        object.__setattr__(self, "weights", hexadecimal(strategy.weights))

    @classmethod
    def of(cls, noise_multiplier: float, steps_per_pass: int, strategy: BufferedStrategy, block: int) -> Self:
        """Return the event of a step with noise of `strategy`."""
        return cls(noise_multiplier, steps_per_pass, hexadecimal(strategy.decays), hexadecimal(strategy.weights), block)

    @property
    def strategy(self) -> BufferedStrategy:
        """C."""
        return BufferedStrategy(_numbers("decays", self.decays), _numbers("weights", self.weights))

    def add_to(self, costs: Costs, count: int) -> None:
        """Add one release of the noise multiplier over the sensitivity of so many steps."""
        sensitivity = math.sqrt(self.strategy.sensitivity_squared(count, self.steps_per_pass))
        costs.add_release(self.noise_multiplier / sensitivity, 1)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return the length of a pass, and how many blocks there were."""
        return in_words(ran[0][0].steps_per_pass, len({event.block for event, _ in ran}))


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float.fromhex, text.split(",")))
    except (AttributeError, ValueError, OverflowError):
        raise InvalidArgumentError(
            f"must be hexadecimal floating-point numbers, got {type(text).__name__}",
            where=name,
            cure='Write them by float.hex, separated by ", "',
        ) from None
