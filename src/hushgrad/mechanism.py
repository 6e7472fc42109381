"""DP-SGD as a frozen value: what one step does to the data, what it costs, and nothing else.

This is the one place where the noise that runs and the noise that is charged are the same number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hushgrad.accounting.accountants import DEFAULT_ACCOUNTANT
from hushgrad.accounting.accountants import epsilon as epsilon_of
from hushgrad.accounting.calibration import calibrate_noise_multiplier, disjoint_passes, poisson_steps
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.events import DisjointPass, Event, PoissonSampled
from hushgrad.arguments import non_negative_number, one_of, positive_number, whole_number
from hushgrad.clipping import FlatClipping
from hushgrad.errors import InvalidArgumentError
from hushgrad.sampling.specs import DisjointBatches, PoissonSampling, Sampling


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """The mechanism of Abadi et al. 2016 (Algorithm 1): clip each example, sum, add noise, divide by a constant.

    Attributes:
        noise_multiplier: σ, no unit. 0 is allowed and not private (ε = ∞).
        clipping: the clip rule; its `sensitivity` is C.
        sampling: how the examples of a step are drawn.
        expected_batch_size: B, a public constant; the size that happens to be drawn is never used.
        steps: a hard limit of steps, if given.
        passes: a hard limit of passes over disjoint batches, if given.
        loss_reduction: "mean" divides the noised sum by B, "sum" does not divide it.

    Guarantee: the noise on the sum has standard deviation `noise_multiplier · sensitivity`, and the accountant is given
    `noise_multiplier`, never one scaled by a batch size.
    """

    noise_multiplier: float
    clipping: FlatClipping
    sampling: Sampling
    expected_batch_size: float
    steps: int | None = None
    passes: int | None = None
    loss_reduction: str = "mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        if not isinstance(self.clipping, FlatClipping):
            raise InvalidArgumentError(f"clipping must be FlatClipping(C), got {type(self.clipping).__name__}")
        if not isinstance(self.sampling, (PoissonSampling, DisjointBatches)):
            raise InvalidArgumentError(
                f"sampling must be PoissonSampling(rate) or DisjointBatches(), got {type(self.sampling).__name__}"
            )
        size = positive_number("expected_batch_size", self.expected_batch_size)
        object.__setattr__(self, "expected_batch_size", size)
        if self.steps is not None:
            object.__setattr__(self, "steps", whole_number("steps", self.steps, minimum=1))
        if self.passes is not None:
            object.__setattr__(self, "passes", whole_number("passes", self.passes, minimum=1))
            if not isinstance(self.sampling, DisjointBatches):
                raise InvalidArgumentError("passes goes with DisjointBatches(); limit Poisson sampling by steps")
        one_of("loss_reduction", self.loss_reduction, ("mean", "sum"))

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on the sum of clipped gradients, σ·C, in units of the gradient."""
        return self.noise_multiplier * self.clipping.sensitivity

    @property
    def divisor(self) -> float:
        """What the noised sum is divided by: B for "mean", 1 for "sum"."""
        return self.expected_batch_size if self.loss_reduction == "mean" else 1.0

    def event(self, pass_index: int = 0) -> Event:
        """Return what one step is charged as; `pass_index` numbers the passes over disjoint batches."""
        if isinstance(self.sampling, PoissonSampling):
            return PoissonSampled(self.sampling.rate, self.noise_multiplier)
        return DisjointPass(self.noise_multiplier, pass_index)

    def composition(self) -> Composition:
        """Return all that the mechanism plans to release: `steps` steps, or `passes` passes over disjoint batches."""
        if isinstance(self.sampling, PoissonSampling):
            return poisson_steps(self.sampling.rate, self._planned("steps", self.steps))(self.noise_multiplier)
        return disjoint_passes(self._planned("passes", self.passes))(self.noise_multiplier)

    def epsilon(self, delta: float, accountant: str = DEFAULT_ACCOUNTANT) -> float:
        """Return ε at `delta` after everything that is planned (`steps` or `passes`) has run."""
        return epsilon_of(self.composition(), delta, accountant)

    def calibrate(self, *, epsilon: float, delta: float, accountant: str = DEFAULT_ACCOUNTANT) -> DPSGD:
        """Return this mechanism with the smallest noise multiplier that plans to spend at most `epsilon` at `delta`.

        Raises:
            UnreachableTargetError: no noise multiplier is large enough.
        """
        if isinstance(self.sampling, PoissonSampling):
            planned = poisson_steps(self.sampling.rate, self._planned("steps", self.steps))
        else:
            planned = disjoint_passes(self._planned("passes", self.passes))
        sigma = calibrate_noise_multiplier(
            target_epsilon=epsilon, target_delta=delta, composition=planned, accountant=accountant
        )
        return replace(self, noise_multiplier=sigma)

    @staticmethod
    def _planned(name: str, value: int | None) -> int:
        if value is None:
            raise InvalidArgumentError(f"{name} must be given to the mechanism to say what it will spend")
        return value
