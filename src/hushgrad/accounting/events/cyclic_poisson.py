"""A step over records drawn independently from one of several groups, whose turn it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from hushgrad.accounting.events.costs import Costs, counts_as_unsampled
from hushgrad.accounting.events.event import ADD_REMOVE_ONE
from hushgrad.accounting.events.numbered import StepOfBlock
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.arguments import count_of


@dataclass(frozen=True, slots=True)
class CyclicPoisson(StepOfBlock):
    """One of consecutive steps that draw the records of `cycle` groups in turn, each with probability `sampling_rate`.

    Every record is in one group, put there independently of the others, so it takes part in one of `cycle` consecutive
    steps at most. Noise of a strategy of at most `cycle` bands then costs it what a Poisson-sampled step with
    independent noise does, each time its turn comes (Choquette-Choo et al. 2023, arXiv:2306.08153, theorem 4): n steps
    of a block cost ⌈n / cycle⌉ of these, whichever group it is in.

    `sampling_rate` (no unit) is that of a record whose turn it is; `noise_multiplier` is that of `Gaussian`; `block`
    numbers the unbroken runs of steps: steps of different blocks may have different groups, and share no noise.
    """

    sampling_rate: float
    noise_multiplier: float
    cycle: int
    block: int

    type: ClassVar[str] = "cyclic_poisson_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ADD_REMOVE_ONE

    def __post_init__(self) -> None:
        turn = PoissonSampled(self.sampling_rate, self.noise_multiplier)
        object.__setattr__(self, "sampling_rate", turn.sampling_rate)
        object.__setattr__(self, "noise_multiplier", turn.noise_multiplier)
        object.__setattr__(self, "cycle", count_of("cycle", self.cycle, minimum=1))
        object.__setattr__(self, "block", count_of("block", self.block, minimum=0))

    def add_to(self, costs: Costs, count: int) -> None:
        """Add a sampled release for each turn of the group that has most of them; nothing where nobody is drawn."""
        turns = -(-count // self.cycle)
        if self.sampling_rate == 0:
            return
        if counts_as_unsampled(self.sampling_rate, self.noise_multiplier):
            costs.add_release(self.noise_multiplier, turns)
        else:
            costs.add_sampled(self.sampling_rate, self.noise_multiplier, turns)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return the cycle, the rate of a turn, and how often groups were drawn."""
        first, blocks = ran[0][0], len({event.block for event, _ in ran})
        rates = sorted({event.sampling_rate for event, _ in ran})
        span = f"rate {rates[0]:.6g}" if len(rates) == 1 else f"rates {rates[0]:.6g} to {rates[-1]:.6g}"
        parts = "" if blocks == 1 else f", in {blocks} blocks, each of which may have groups of its own"
        return (
            f"cyclic Poisson, every record in one of {first.cycle} groups at random, and independently with {span} in "
            f"every step that is its group's turn{parts}"
        )

    @property
    def charged_rate(self) -> float:
        """The rate of a record whose turn it is."""
        return self.sampling_rate
