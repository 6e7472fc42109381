"""DP-SGD: the mechanism with Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from hushgrad.mechanism.known import noise_named
from hushgrad.mechanism.mechanism import Mechanism
from hushgrad.mechanism.noise import NoiseMechanism
from hushgrad.strategies.banded import INDEPENDENT
from hushgrad.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class DPSGD(Mechanism):
    """The mechanism of Abadi et al. 2016 (Algorithm 1): clip each example, sum, add noise, divide by a constant.

    Attributes:
        noise_multiplier: σ, no unit. 0 is allowed and not private (ε = ∞).
        noise_kind: "gaussian", or "grid": Gaussian noise on a grid, to which the sum is rounded, so that floating point
            says nothing more of the sum (`GridNoise`; docs/floating-point.md).
        clipping: the clip rule; its `sensitivity` is C.
        sampling: how the examples of a step are drawn.
        expected_batch_size: B, a public constant; the size that happens to be drawn is never used.
        steps: a hard limit of steps, if given.
        passes: a hard limit of passes over the data, if given; for a sampling that is counted in passes.
        loss_reduction: "mean" divides the noised sum by B, "sum" does not divide it.
        noise_schedule: one factor > 0 on `noise_multiplier` for each step; public, fixed beforehand, charged step by
            step. For a sampling that is counted in steps. Its length limits `steps` (and is their number, if `steps` is
            None).
        clip_schedule: the same for the clip norm; the noise of a step follows that step's clip norm.
        sparse_rows: tables of which each step updates some rows alone, chosen by noised counts of the records that
            touch them, at the same cost (`SparseRows`); with "gaussian" noise that is independent in every step.
        strategy: how noise is correlated between steps (`CorrelatedNoise`), by default not at all. It takes a sampling
            that keeps a record's steps apart (`CyclicPoissonSampling`, `FixedOrderBatches`), and goes with "gaussian".

    Guarantee: the noise on the sum has standard deviation `noise_multiplier · sensitivity`, and the accountant is given
    `noise_multiplier`, never one scaled by a batch size.
    """

    noise_multiplier: float
    noise_kind: str = "gaussian"
    noise: NoiseMechanism = field(init=False, repr=False, compare=False)
    strategy: Strategy = INDEPENDENT

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise", noise_named(self.noise_kind, self.noise_multiplier, self.strategy))
        super().__post_init__()

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Return this mechanism with another σ."""
        return self._changed(noise_multiplier=noise_multiplier)
