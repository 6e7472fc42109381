"""A mechanism as a frozen value: what one step does to the data, what it costs, and nothing else.

This is the one place where the noise that runs and the noise that is charged are the same number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor

from hushgrad.accounting.accountants import DEFAULT_ACCOUNTANT
from hushgrad.accounting.calibration import calibrate_noise_multiplier
from hushgrad.accounting.composition import Composition, next_block, next_pass
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.neighbours import epsilon_of_group
from hushgrad.arguments import clip_norm, non_negative_number, one_of, positive_number, whole_number
from hushgrad.clipping.known import require_clip_rule
from hushgrad.clipping.rule import ClipRule
from hushgrad.errors import InvalidArgumentError, NoiseMismatchError, UnprovenMechanismError
from hushgrad.mechanism.noise import NoiseMechanism, require_noise
from hushgrad.noise.gaussian import Noised
from hushgrad.sampling.scheme import SamplingScheme, require_scheme
from hushgrad.sparse_rows.rule import SparseRows, require_sparse_rows
from hushgrad.strategies.banded import INDEPENDENT


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Clip each example, sum, add noise, divide by a constant: a clip rule, a noise mechanism and a sampling scheme.

    `DPSGD` is the one with Gaussian noise, and says what the other fields are.

    Attributes:
        noise: what is added to the sum.
        noise_multiplier: that of the noise.
        sensitivity: that of the clip rule, read once: the noise is made from it.

    Raises `UnprovenMechanismError` where nobody has proven what this noise costs with this sampling or clip rule, and
    `InvalidArgumentError` for a field out of range.

    Guarantee: a pair of noise and sampling without a proof cannot be made a mechanism.
    Guarantee: a pair of noise and clip rule without a proof cannot be made a mechanism.
    Guarantee: rows are chosen by counts beside noise only with which both are known to cost what one step does.
    """

    noise: NoiseMechanism
    noise_multiplier: float = field(init=False, repr=False, compare=False)
    clipping: ClipRule
    sensitivity: float = field(init=False, repr=False, compare=False)
    sampling: SamplingScheme
    expected_batch_size: float
    steps: int | None = None
    passes: int | None = None
    loss_reduction: str = "mean"
    noise_schedule: tuple[float, ...] | None = None
    clip_schedule: tuple[float, ...] | None = None
    sparse_rows: SparseRows | None = None

    def __post_init__(self) -> None:
        noise = require_noise(self.noise)
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", noise.noise_multiplier))
        rule = require_clip_rule(self.clipping)
        object.__setattr__(self, "sensitivity", positive_number("sensitivity", rule.sensitivity))
        self._check_rule(rule)
        self._std()
        event = noise.event(require_scheme(self.sampling))
        if not isinstance(event, Event):
            raise InvalidArgumentError(
                f"its event with {type(self.sampling).__name__} must be an Event, got {type(event).__name__}",
                where=f"the noise {type(noise).__name__}",
                cure="Return from event() what a step costs, such as sampling.event(noise_multiplier)",
            )
        self._check_sparse_rows(event)
        self._check_passes(event)
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

    def _check_rule(self, rule: ClipRule) -> None:
        """Refuse a rule that wants more of the noise than one standard deviation for all, where it has no more."""
        if self.noise.follows_rule or not (rule.adaptation is not None or rule.noise_differs):
            return
        raise UnprovenMechanismError(
            f"it is not known what {self.noise.describe()} costs with a clip rule whose norm differs from step to step "
            f"or whose groups have noise of their own: {rule.describe()}",
            cure='Take independent Gaussian noise (noise="gaussian", GaussianNoise), or a rule with one norm and one '
            'noise for all, such as FlatClipping(C) or GroupwiseClipping(C, noise="same")',
        )

    def _check_sparse_rows(self, event: Event) -> None:
        """Refuse rows that are chosen by counts, with noise of which it is not known that counts can share its cost.

        The noise on counts is Gaussian: both are one release where the noise on gradients is, too.
        """
        if self.sparse_rows is None:
            return
        require_sparse_rows(self.sparse_rows)
        gaussian = self.noise_multiplier * self.sensitivity
        is_gaussian = (
            self.noise.follows_rule
            and math.isclose(self._std(), gaussian, rel_tol=1e-9)
            and event == self.sampling.event(self.noise_multiplier)
        )
        if not is_gaussian:
            raise UnprovenMechanismError(
                f"it is not known what {self.noise.describe()} costs where it is drawn for some rows of a table alone, "
                f"others in each step (SparseRows)",
                where="sparse_rows",
                cure='Take independent Gaussian noise (noise="gaussian", GaussianNoise), or leave sparse_rows out',
            )

    def _check_passes(self, first: Event) -> None:
        """Refuse a charge that is counted otherwise than the sampling: many steps would cost as much as one."""
        events, counted = (first, self.noise.event(self.sampling, 1)), self.sampling.counts_in
        numbers = {
            "passes": [event.data_pass for event in events],
            "blocks": [event.in_block for event in events],
        }
        if all(found == ([0, 1] if name == counted else [None, None]) for name, found in numbers.items()):
            return
        wrong = next(name for name, found in numbers.items() if found != ([0, 1] if name == counted else [None, None]))
        one = "pass over the data" if wrong == "passes" else "block"
        said = f"belongs to no {one}, or not to the one it is asked for" if wrong == counted else f"belongs to a {one}"
        raise InvalidArgumentError(
            f"{type(self.sampling).__name__} is counted in {counted}, and its event {type(first).__name__} {said}",
            cure='Give a scheme of which a record takes part in one step of a pass counts_in = "passes" and an event '
            'with that index (DisjointPass), one whose steps cost by the length of their run counts_in = "blocks" and '
            "an event of that block; give any other an event without either",
        )

    def _check_schedules(self) -> None:
        for name in ("noise_schedule", "clip_schedule"):
            factors: Sequence[float] | None = self.noise_schedule if name == "noise_schedule" else self.clip_schedule
            if factors is None:
                continue
            if self.sampling.counts_in != "steps":
                why = (
                    "passes have no fixed number of steps"
                    if self.sampling.counts_in == "passes"
                    else "the steps of a block are charged together, as equal ones"
                )
                raise InvalidArgumentError(
                    f"{name} does not go with {type(self.sampling).__name__}: {why}",
                    cure="Leave it out, or take a sampling that is counted in steps (PoissonSampling)",
                )
            if self.noise.strategy != INDEPENDENT:
                raise InvalidArgumentError(
                    f"{name} does not go with noise that is correlated between steps: it is whitened as noise of one "
                    f"level",
                    cure="Leave it out, or take independent noise (GaussianNoise)",
                )
            if isinstance(factors, str) or not isinstance(factors, Sequence) or not factors:
                raise InvalidArgumentError(
                    f"must be a sequence of one factor for each step, got {type(factors).__name__}",
                    where=name,
                    cure="Pass a tuple of numbers > 0",
                )
            checked = tuple(positive_number(f"{name}[{i}]", factor) for i, factor in enumerate(factors))
            if name == "clip_schedule":
                clip_norm("the sensitivity times the smallest factor of clip_schedule", self.sensitivity * min(checked))
                self.clipping.scaled(checked[0])  # may refuse
            object.__setattr__(self, name, checked)
            if self.steps is None:
                object.__setattr__(self, "steps", len(checked))
            elif self.steps > len(checked):
                raise InvalidArgumentError(
                    f"must have a factor for each of the {self.steps} steps, got {len(checked)}",
                    where=name,
                    cure="Pass as many factors as there are steps, or plan fewer steps",
                )

    @property
    def is_scheduled(self) -> bool:
        """Whether noise or clip norm differ from step to step."""
        return self.noise_schedule is not None or self.clip_schedule is not None

    def at(self, step: int) -> Self:
        """Return the mechanism of step `step` (from 0) alone; itself where nothing is scheduled.

        Guarantee: the noise that runs in a step and the noise that is charged for it come from the same value.
        """
        if not self.is_scheduled:
            return self
        number = whole_number("step", step, minimum=0)
        if number >= self._planned("steps", self.steps):
            raise InvalidArgumentError(
                f"the schedule has {self.steps} steps, numbered from 0; step {number} is none of them",
                cure="Ask for one of its steps",
            )
        clipping = self.clipping
        if self.clip_schedule is not None:
            clipping = clipping.scaled(self.clip_schedule[number])
        once = self._changed(clipping=clipping, noise_schedule=None, clip_schedule=None)
        return once if self.noise_schedule is None else once.with_noise_multiplier(self._noise_at(number))

    def with_clipping(self, clipping: ClipRule) -> Self:
        """Return this mechanism with another clip rule."""
        return self._changed(clipping=clipping)

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Return this mechanism with another noise multiplier."""
        return self._changed(noise=self._noise_with(noise_multiplier))

    def _noise_with(self, noise_multiplier: float) -> NoiseMechanism:
        """Return the noise with another multiplier; one that keeps its own would be charged for as if it had not."""
        noise = require_noise(self.noise.with_noise_multiplier(noise_multiplier))
        if not math.isclose(noise.noise_multiplier, noise_multiplier, rel_tol=1e-9):
            raise InvalidArgumentError(
                f"with_noise_multiplier({noise_multiplier:g}) of {type(self.noise).__name__} returned noise with the "
                f"multiplier {noise.noise_multiplier:g}",
                cure="Return the same noise with the multiplier that is given, by dataclasses.replace for instance",
            )
        return noise

    def _changed(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def _noise_at(self, step: int) -> float:
        return self.noise_multiplier * (1.0 if self.noise_schedule is None else self.noise_schedule[step])

    def _require_one_step(self) -> None:
        if self.is_scheduled:
            raise InvalidArgumentError(
                "noise and clip norm differ from step to step", cure="Ask mechanism.at(step), of one step"
            )

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on the sum of clipped gradients, in units of the gradient; Gaussian: σ·C.

        Where the clip rule gives groups noise of their own, or counts, or rows are chosen by counts, that of a group is
        this times its relative noise (`BoundRule.relative`).
        """
        self._require_one_step()
        return self._std()

    def _std(self) -> float:
        name, std = f"std() of {type(self.noise).__name__}", self.noise.std(self.sensitivity)
        # 0 would be taken for no noise to look at, and what is no number for no measure of it.
        return non_negative_number(name, std) if self.noise_multiplier == 0 else positive_number(name, std)

    @property
    def rmse(self) -> float:
        """The noise of sums of releases, known beforehand, in units of the gradient.

        The square root of the mean, over t <= `steps`, of the variance of a value of the sum of the first t releases
        times `divisor`: of what gradient descent with a constant learning rate has added up by then. For independent
        noise of n steps σ·C·√((n + 1)/2). Raises `InvalidArgumentError` where `steps` is not planned.
        """
        self._require_one_step()
        return self._std() * math.sqrt(self.noise.strategy.mean_error(self._planned("steps", self.steps)))

    @property
    def divisor(self) -> float:
        """What the noised sum is divided by: B for "mean", 1 for "sum"."""
        return self.expected_batch_size if self.loss_reduction == "mean" else 1.0

    def updates(self, state: Any, totals: Sequence[Noised]) -> list[Tensor]:
        """Return `(total + noise) / divisor` for each total of one step; `state` is what `noise.start` returned.

        Raises `NoiseMismatchError` where the noise gives back something of another form than it was given.
        """
        self._require_one_step()
        forms = [(part.total.shape, part.total.dtype, part.total.device) for part in totals]
        updates = self.noise.updates(state, totals, sensitivity=self.sensitivity, divisor=self.divisor)
        if not _are_tensors(updates) or [(part.shape, part.dtype, part.device) for part in updates] != forms:
            raise NoiseMismatchError(
                f"{type(self.noise).__name__} gave back something else than a list of {len(forms)} dense tensors for "
                f"{len(forms)} sums, or tensors of other shapes, dtypes or devices than the sums",
                cure="Return one update for each total from updates(), in its order, shape, dtype and device",
            )
        return updates

    def event(self, index: int = 0) -> Event:
        """Return what one step is charged as; `index` numbers the passes or blocks that the sampling counts in."""
        self._require_one_step()
        return self.noise.event(self.sampling, index)

    def composition(self) -> Composition:
        """Return all that the mechanism plans to release: `steps` steps, or `passes` passes over the data."""
        name = "passes" if self.sampling.counts_in == "passes" else "steps"
        return self.first(self._planned(name, self.passes if name == "passes" else self.steps))

    def first(self, count: int) -> Composition:
        """Return what the first `count` steps release, without a break, or the first `count` passes over the data.

        One step of each pass stands for all of them: they cost a record no more than one.
        """
        number = whole_number("count", count, minimum=1)
        if self.sampling.counts_in == "passes":
            return [(self.noise.event(self.sampling, index), 1) for index in range(number)]
        if self.noise_schedule is None:
            return [(self.noise.event(self.sampling), number)]
        runs = groupby(self._noise_at(step) for step in range(number))
        noises = [(self._noise_with(multiplier), len(list(run))) for multiplier, run in runs]
        return [(noise.event(self.sampling), steps) for noise, steps in noises]

    def equal_steps(self, step: int, most: int) -> int:
        """Return how many steps from `step` on are charged alike, at most `most`."""
        if self.noise_schedule is None:
            return most
        last = min(step + most, len(self.noise_schedule))
        return next((i - step for i in range(step + 1, last) if self._noise_at(i) != self._noise_at(step)), last - step)

    def epsilon(self, delta: float, accountant: str = DEFAULT_ACCOUNTANT, *, group_size: int = 1) -> float:
        """Return ε at `delta` after everything that is planned (`steps` or `passes`) has run.

        With a `group_size` k that of k records at once: of a person with at most k.
        """
        return epsilon_of_group(self.composition(), delta, group_size, accountant).upper

    def calibrate(
        self,
        *,
        epsilon: float,
        delta: float,
        accountant: str = DEFAULT_ACCOUNTANT,
        before: Composition = (),
        group_size: int = 1,
    ) -> Self:
        """Return this mechanism with the smallest noise multiplier that plans to spend at most `epsilon` at `delta`.

        A schedule keeps its shape: its factors stay. `before` is what the same account holds of earlier phases, which
        counts into `epsilon`. With a `group_size` k, `epsilon` is that of k records at once.

        Raises:
            UnreachableTargetError: no noise multiplier is large enough.
        """
        self.composition()  # says what is missing from the plan before the search begins
        # Passes and blocks are numbered on: steps of one number would be charged as steps of one of them.
        shift = max(next_pass(before), next_block(before))

        def planned(noise_multiplier: float) -> Composition:
            changed = self.with_noise_multiplier(noise_multiplier)
            if not shift or changed.sampling.counts_in == "steps":
                return [*before, *changed.composition()]
            if changed.sampling.counts_in == "blocks":
                return [*before, (changed.event(shift), changed.steps or 0)]
            return [*before, *((changed.event(shift + index), 1) for index in range(changed.passes or 0))]

        sigma = calibrate_noise_multiplier(
            target_epsilon=epsilon,
            target_delta=delta,
            composition=planned,
            accountant=accountant,
            group_size=group_size,
        )
        return self.with_noise_multiplier(sigma)

    @staticmethod
    def _planned(name: str, value: int | None) -> int:
        if value is None:
            raise InvalidArgumentError(
                "must be given to say what the mechanism will spend", where=name, cure=f"Pass {name}= to the mechanism"
            )
        return value


def _are_tensors(updates: object) -> bool:
    return isinstance(updates, list | tuple) and all(
        isinstance(update, Tensor) and update.layout is torch.strided for update in updates
    )
