"""Gaussian noise that is correlated between steps by a strategy, so that much of it cancels in sums of releases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from hushgrad.accounting.events.event import Event
from hushgrad.arguments import non_negative_number
from hushgrad.errors import InvalidArgumentError, NoiseMismatchError
from hushgrad.mechanism.noise import NoiseMechanism
from hushgrad.noise.gaussian import Noised, noisy_updates
from hushgrad.randomness import KeyStream
from hushgrad.sampling.scheme import SamplingScheme
from hushgrad.strategies.strategy import Memory, Strategy


@dataclass(frozen=True)
class CorrelatedNoise(NoiseMechanism):
    """Row t of C⁻¹Z for step t: C is the strategy, Z has standard deviation `noise_multiplier` times the sensitivity.

    Every release then is a function of C·G + Z, where G are the sums (Denisov et al. 2022, arXiv:2202.08312). What it
    costs is said together with the sampling, which must keep a record's steps apart: `CyclicPoissonSampling`, or
    `FixedOrderBatches`.

    What is remembered of earlier steps, in the dtype of the sums (float32 at least), is as secret as the key, lives in
    the state that `start` returns and is never saved: a run that is resumed begins a new block.

    Guarantee: what is added to the sums of a block is C⁻¹Z, and no noise of one block is in another.

    Raises `InvalidArgumentError` unless `noise_multiplier` is a number >= 0 and `strategy` a `Strategy`.
    """

    noise_multiplier: float
    strategy: Strategy

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        if not isinstance(self.strategy, Strategy):
            raise InvalidArgumentError(
                f"must be a strategy, got {type(self.strategy).__name__}",
                where="strategy",
                cure="Give optimal_banded(steps, bands) or optimal_buffered(steps, min_separation)",
            )

    def std(self, sensitivity: float) -> float:
        """Return that of Z: σ times the sensitivity."""
        return self.noise_multiplier * sensitivity

    def start(self, stream: KeyStream) -> Block:
        """Return the stream with no memory of earlier steps."""
        return Block(stream)

    def updates(self, state: Block, totals: Sequence[Noised], *, sensitivity: float, divisor: float) -> list[Tensor]:
        """Return (total + row t of C⁻¹Z) / divisor for each total.

        Raises `NoiseMismatchError` where a total has another form than in the steps before, or the noise another level.
        """
        std = self.std(sensitivity)
        blank = [Noised(torch.zeros_like(part.total), part.address, overwrite=True) for part in totals]
        fresh = noisy_updates(blank, noise_std=std, divisor=1.0, stream=state.stream)
        updates = []
        for part, noise in zip(totals, fresh, strict=True):
            correlated = state.memory_of(part, std, self.strategy).correlated(noise)
            updates.append(correlated.add_(part.total.detach()).div_(divisor))
        return updates

    def event(self, sampling: SamplingScheme, index: int = 0) -> Event:
        """Return what the sampling makes of it.

        Raises `UnprovenMechanismError` where nobody has proven what the pair costs.
        """
        event = sampling.correlated_event(self.noise_multiplier, self.strategy, index)
        if event is None:
            raise self.unproven(
                sampling,
                cure="Take a sampling that keeps the steps of a record as far apart as the strategy has bands "
                "(CyclicPoissonSampling(rate, cycle=bands); FixedOrderBatches, which goes with buffered strategies, "
                "too), or independent noise",
            )
        return event

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Return noise of the same strategy with another σ."""
        return replace(self, noise_multiplier=noise_multiplier)

    def describe(self) -> str:
        """Return the strategy with all its constants."""
        return (
            f"Gaussian noise correlated between steps, of standard deviation {self.noise_multiplier:g} times the "
            f"sensitivity before it is correlated by {self.strategy.describe()}"
        )


@dataclass(frozen=True)
class Block:
    """What one unbroken run of steps remembers; not shown, and not to be kept."""

    stream: KeyStream
    _memories: dict[int, tuple[object, Memory]] = field(default_factory=dict, repr=False)

    def memory_of(self, part: Noised, std: float, strategy: Strategy) -> Memory:
        """Return the memory of the series that a total continues."""
        form = (part.total.shape, part.total.dtype, part.total.device, std, strategy)
        if part.address.item not in self._memories:
            self._memories[part.address.item] = (form, strategy.memory())
        before, memory = self._memories[part.address.item]
        if before != form:
            raise NoiseMismatchError(
                "noise that is correlated between steps continues that of the steps before, and a sum has another "
                "shape, dtype, device or noise than in those",
                cure="Train the same parameters, in one place and with one clip norm, in all steps of a session; begin "
                "a new session (with the same ledger) to change them",
            )
        return memory
