"""DP-SGD as a frozen value: what one step does to the data, what it costs, and nothing else.

This is the one place where the noise that runs and the noise that is charged are the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from hushgrad.accounting.accountants import DEFAULT_ACCOUNTANT
from hushgrad.accounting.accountants import epsilon as epsilon_of
from hushgrad.accounting.calibration import calibrate_noise_multiplier
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.events.event import Event
from hushgrad.arguments import non_negative_number, one_of, positive_number, whole_number
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import InvalidArgumentError
from hushgrad.sampling.scheme import SamplingScheme, require_scheme


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """The mechanism of Abadi et al. 2016 (Algorithm 1): clip each example, sum, add noise, divide by a constant.

    Attributes:
        noise_multiplier: σ, no unit. 0 is allowed and not private (ε = ∞).
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

    Guarantee: the noise on the sum has standard deviation `noise_multiplier · sensitivity`, and the accountant is given
    `noise_multiplier`, never one scaled by a batch size.
    """

    noise_multiplier: float
    clipping: FlatClipping
    sampling: SamplingScheme
    expected_batch_size: float
    steps: int | None = None
    passes: int | None = None
    loss_reduction: str = "mean"
    noise_schedule: tuple[float, ...] | None = None
    clip_schedule: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        if not isinstance(self.clipping, FlatClipping):
            raise InvalidArgumentError(f"clipping must be FlatClipping(C), got {type(self.clipping).__name__}")
        require_scheme(self.sampling)
        size = positive_number("expected_batch_size", self.expected_batch_size)
        object.__setattr__(self, "expected_batch_size", size)
        if self.steps is not None:
            object.__setattr__(self, "steps", whole_number("steps", self.steps, minimum=1))
        if self.passes is not None:
            object.__setattr__(self, "passes", whole_number("passes", self.passes, minimum=1))
            if self.sampling.counts_in != "passes":
                raise InvalidArgumentError(
                    f"passes does not go with {type(self.sampling).__name__}, which is counted in steps",
                    cure="Limit it by steps",
                )
        one_of("loss_reduction", self.loss_reduction, ("mean", "sum"))
        self._check_schedules()

    def _check_schedules(self) -> None:
        for name in ("noise_schedule", "clip_schedule"):
            factors: Sequence[float] | None = self.noise_schedule if name == "noise_schedule" else self.clip_schedule
            if factors is None:
                continue
            if self.sampling.counts_in != "steps":
                raise InvalidArgumentError(
                    f"{name} does not go with {type(self.sampling).__name__}: passes have no fixed number of steps",
                    cure="Leave it out, or take a sampling that is counted in steps (PoissonSampling)",
                )
            if isinstance(factors, str) or not isinstance(factors, Sequence) or not factors:
                raise InvalidArgumentError(f"{name} must be a sequence of one factor for each step")
            checked = tuple(positive_number(f"{name}[{i}]", factor) for i, factor in enumerate(factors))
            object.__setattr__(self, name, checked)
            if self.steps is None:
                object.__setattr__(self, "steps", len(checked))
            elif self.steps > len(checked):
                raise InvalidArgumentError(
                    f"{name} must have a factor for each of the {self.steps} steps, got {len(checked)}"
                )

    @property
    def is_scheduled(self) -> bool:
        """Whether noise or clip norm differ from step to step."""
        return self.noise_schedule is not None or self.clip_schedule is not None

    def at(self, step: int) -> DPSGD:
        """Return the mechanism of step `step` (from 0) alone; itself where nothing is scheduled.

        Guarantee: the noise that runs in a step and the noise that is charged for it come from the same value.
        """
        if not self.is_scheduled:
            return self
        number = whole_number("step", step, minimum=0)
        if number >= self._planned("steps", self.steps):
            raise InvalidArgumentError(f"the schedule has {self.steps} steps, numbered from 0; step {number} is none")
        clipping = self.clipping
        if self.clip_schedule is not None:
            clipping = replace(clipping, max_grad_norm=clipping.max_grad_norm * self.clip_schedule[number])
        return replace(
            self,
            noise_multiplier=self._noise_at(number),
            clipping=clipping,
            noise_schedule=None,
            clip_schedule=None,
        )

    def _noise_at(self, step: int) -> float:
        return self.noise_multiplier * (1.0 if self.noise_schedule is None else self.noise_schedule[step])

    def _require_one_step(self) -> None:
        if self.is_scheduled:
            raise InvalidArgumentError("noise and clip norm differ from step to step; ask mechanism.at(step)")

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on the sum of clipped gradients, σ·C, in units of the gradient."""
        self._require_one_step()
        return self.noise_multiplier * self.clipping.sensitivity

    @property
    def divisor(self) -> float:
        """What the noised sum is divided by: B for "mean", 1 for "sum"."""
        return self.expected_batch_size if self.loss_reduction == "mean" else 1.0

    def event(self, pass_index: int = 0) -> Event:
        """Return what one step is charged as; `pass_index` numbers the passes over disjoint batches."""
        self._require_one_step()
        return self.sampling.event(self.noise_multiplier, pass_index)

    def composition(self) -> Composition:
        """Return all that the mechanism plans to release: `steps` steps, or `passes` passes over the data."""
        limit = self.steps if self.sampling.counts_in == "steps" else self.passes
        return self.first(self._planned(self.sampling.counts_in, limit))

    def first(self, count: int) -> Composition:
        """Return what the first `count` steps release, or the first `count` passes over the data.

        One step of each pass stands for all of them: they cost a record no more than one.
        """
        number = whole_number("count", count, minimum=1)
        if self.sampling.counts_in == "passes":
            return [(self.event(index), 1) for index in range(number)]
        if self.noise_schedule is None:
            return [(self.sampling.event(self.noise_multiplier), number)]
        runs = groupby(self._noise_at(step) for step in range(number))
        return [(self.sampling.event(noise_multiplier), len(list(run))) for noise_multiplier, run in runs]

    def equal_steps(self, step: int, most: int) -> int:
        """Return how many steps from `step` on are charged alike, at most `most`."""
        if self.noise_schedule is None:
            return most
        last = min(step + most, len(self.noise_schedule))
        return next((i - step for i in range(step + 1, last) if self._noise_at(i) != self._noise_at(step)), last - step)

    def epsilon(self, delta: float, accountant: str = DEFAULT_ACCOUNTANT) -> float:
        """Return ε at `delta` after everything that is planned (`steps` or `passes`) has run."""
        return epsilon_of(self.composition(), delta, accountant)

    def calibrate(self, *, epsilon: float, delta: float, accountant: str = DEFAULT_ACCOUNTANT) -> DPSGD:
        """Return this mechanism with the smallest noise multiplier that plans to spend at most `epsilon` at `delta`.

        A schedule keeps its shape: its factors stay.

        Raises:
            UnreachableTargetError: no noise multiplier is large enough.
        """
        self.composition()  # says what is missing from the plan before the search begins

        def planned(noise_multiplier: float) -> Composition:
            return replace(self, noise_multiplier=noise_multiplier).composition()

        sigma = calibrate_noise_multiplier(
            target_epsilon=epsilon, target_delta=delta, composition=planned, accountant=accountant
        )
        return replace(self, noise_multiplier=sigma)

    @staticmethod
    def _planned(name: str, value: int | None) -> int:
        if value is None:
            raise InvalidArgumentError(f"{name} must be given to the mechanism to say what it will spend")
        return value
