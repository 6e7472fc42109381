"""A step over the caller's own batches, which come in the same order in every pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from hushgrad.accounting.events.costs import Costs
from hushgrad.accounting.events.event import ZERO_OUT
from hushgrad.accounting.events.numbered import StepOfBlock
from hushgrad.arguments import count_of, non_negative_number


@dataclass(frozen=True, slots=True)
class FixedOrder(StepOfBlock):
    """One of consecutive steps over disjoint batches that come again, in the same order, after `steps_per_pass` steps.

    Charged without amplification. A record takes part every `steps_per_pass` steps, so noise of a strategy of at most
    that many bands costs it one `Gaussian` event each time: n steps of a block cost ⌈n / steps_per_pass⌉ of these.
    Under add/remove-one the absence of a record would shift every later batch; hence zero-out.

    `block` numbers the unbroken runs of steps; steps of different blocks share no noise.
    """

    noise_multiplier: float
    steps_per_pass: int
    block: int

    type: ClassVar[str] = "fixed_order_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ZERO_OUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        object.__setattr__(self, "steps_per_pass", count_of("steps_per_pass", self.steps_per_pass, minimum=1))
        object.__setattr__(self, "block", count_of("block", self.block, minimum=0))

    def add_to(self, costs: Costs, count: int) -> None:
        """Add a release for each time that the batches begun with come."""
        costs.add_release(self.noise_multiplier, -(-count // self.steps_per_pass))

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return the length of a pass, and how many blocks there were."""
        return in_words(ran[0][0].steps_per_pass, len({event.block for event, _ in ran}))


def in_words(steps_per_pass: int, blocks: int) -> str:
    """Return how records were drawn in such steps."""
    parts = "" if blocks == 1 else f", in {blocks} blocks of consecutive steps"
    return (
        f"the caller's own batches, {steps_per_pass} in a pass and in the same order in every pass{parts}, charged "
        f"without amplification"
    )
