"""Which noise is better for a plan: independent, or correlated between steps. Both are known before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hushgrad.accounting.accountants import DEFAULT_ACCOUNTANT
from hushgrad.accounting.calibration import calibrate_noise_multiplier
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.events.event import Event
from hushgrad.arguments import open_unit_interval, positive_number, probability, whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.sampling.cyclic import CyclicPoissonSampling
from hushgrad.sampling.disjoint import DisjointBatches
from hushgrad.sampling.fixed_order import FixedOrderBatches
from hushgrad.sampling.poisson import PoissonSampling
from hushgrad.sampling.scheme import SamplingScheme
from hushgrad.strategies.banded import INDEPENDENT
from hushgrad.strategies.optimal_banded import optimal_banded
from hushgrad.strategies.optimal_buffered import optimal_buffered
from hushgrad.strategies.strategy import Strategy

MOST_BANDS = 32
"""More bands are not tried unless asked for: a strategy of b bands keeps b − 1 copies of the trained parameters."""

WORTH_IT = 0.9
"""Correlated noise that leaves more than this share of independent noise is not advised."""


@dataclass(frozen=True)
class NoiseOption:
    """One way to noise a plan.

    Attributes:
        name: "gaussian" (independent), "banded" or "buffered", as `make_private_with_epsilon` takes it for `noise`.
        strategy: how noise is correlated between steps.
        sampling: the scheme that goes with it, with the plan's rate or batches.
        noise_multiplier: σ, the smallest that keeps to the plan's ε.
        rmse: the noise of sums of releases as `Mechanism.rmse` has it, in units of the clip norm: σ·√(mean error).
        copies: how many copies of the trained parameters its memory takes.
    """

    name: str
    strategy: Strategy
    sampling: SamplingScheme
    noise_multiplier: float
    rmse: float
    copies: int


@dataclass(frozen=True)
class NoiseComparison:
    """What `compare_noise` found.

    Attributes:
        independent: independent noise.
        correlated: all others, those with the least noise first.
    """

    independent: NoiseOption
    correlated: tuple[NoiseOption, ...]

    @property
    def best(self) -> NoiseOption:
        """The one that is advised: the least noise, and independent noise where the others save less than a tenth."""
        return self.correlated[0] if self.correlated and self.ratio < WORTH_IT else self.independent

    @property
    def ratio(self) -> float:
        """The least noise of correlated over independent noise, in prefix sums; infinite where there is none."""
        return self.correlated[0].rmse / self.independent.rmse if self.correlated else math.inf

    def named(self, name: str) -> NoiseOption:
        """Return the best option of a kind, or for "best" the one that is advised.

        Raises `InvalidArgumentError` where the plan has none of that kind.
        """
        if name == "best":
            return self.best
        found = [option for option in (self.independent, *self.correlated) if option.name == name]
        if not found:
            raise InvalidArgumentError(
                f"there is no {name} noise for this plan",
                where="noise",
                cure='Take "gaussian"; banded noise needs batches of at most half the data and two steps, and '
                "buffered noise batches in a fixed order (poisson_sampling=False)",
            )
        return min(found, key=lambda option: option.rmse)

    def __str__(self) -> str:
        """Return the advice as a sentence."""
        plain = f"independent noise has a prefix RMSE of {self.independent.rmse:.4g} C"
        if not self.correlated:
            return f"Independent noise is all there is for this plan: {plain}."
        other = self.correlated[0]
        what = f"{other.name} noise ({_size_of(other)}) of {other.rmse:.4g} C, {self.ratio:.2f} times as much"
        if self.best is self.independent:
            return f"Independent noise is better for this plan: {plain}, {what}."
        return (
            f"Correlated noise is better for this plan: {plain}, {what}, for {other.copies} more copies of what is "
            f"trained."
        )


def compare_noise(
    *,
    epsilon: float,
    delta: float,
    steps: int,
    rate: float | None = None,
    steps_per_pass: int | None = None,
    max_bands: int = MOST_BANDS,
    accountant: str = DEFAULT_ACCOUNTANT,
) -> NoiseComparison:
    """Return what each noise leaves in sums of releases, at one ε for the whole plan.

    Independent noise is charged with Poisson sampling (or disjoint batches), banded noise with cyclic Poisson sampling
    (or batches in fixed order), buffered noise with batches in fixed order.

    Args:
        epsilon: ε of the plan, > 0.
        delta: δ, in (0, 1).
        steps: the number of steps, without a break.
        rate: q of Poisson sampling, for amplified plans.
        steps_per_pass: in its place, the number of batches in a pass, for plans over the loader's own batches.
        max_bands: the most bands that are tried, in powers of two.
        accountant: who charges.

    Raises `InvalidArgumentError` for an argument out of range, `UnreachableTargetError` where no noise keeps to ε.
    """
    positive_number("epsilon", epsilon)
    open_unit_interval("delta", delta)
    count, most = whole_number("steps", steps, minimum=1), whole_number("max_bands", max_bands, minimum=1)
    if (rate is None) == (steps_per_pass is None):
        raise InvalidArgumentError(
            "a plan has a rate or batches in a fixed order, and one of both must be given",
            cure="Pass rate= for Poisson sampling, or steps_per_pass= for the loader's own batches",
        )

    def option(name: str, strategy: Strategy, sampling: SamplingScheme, copies: int) -> NoiseOption:
        def planned(noise_multiplier: float) -> Composition:
            return _planned(sampling, strategy, noise_multiplier, count, steps_per_pass)

        sigma = calibrate_noise_multiplier(
            target_epsilon=epsilon, target_delta=delta, composition=planned, accountant=accountant
        )
        return NoiseOption(name, strategy, sampling, sigma, sigma * math.sqrt(strategy.mean_error(count)), copies)

    if rate is not None:
        q = probability("rate", rate)
        independent = option("gaussian", INDEPENDENT, PoissonSampling(q), 0)
        found = [
            option("banded", optimal_banded(count, bands), CyclicPoissonSampling(q, bands), bands - 1)
            for bands in _powers(min(most, count, int(1 / q * (1 + 1e-12))))
        ]
    else:
        apart = whole_number("steps_per_pass", steps_per_pass, minimum=1)
        ordered = FixedOrderBatches(apart)
        independent = option("gaussian", INDEPENDENT, DisjointBatches(), 0)
        found = [
            option("banded", optimal_banded(count, bands), ordered, bands - 1)
            for bands in _powers(min(most, count, apart))
        ]
        if count > 1:
            found.append(option("buffered", optimal_buffered(count, apart), ordered, 2))
    return NoiseComparison(independent, tuple(sorted(found, key=lambda one: one.rmse)))


def _planned(
    sampling: SamplingScheme, strategy: Strategy, noise_multiplier: float, steps: int, steps_per_pass: int | None
) -> Composition:
    def event(index: int) -> Event:
        found = sampling.correlated_event(noise_multiplier, strategy, index)
        assert found is not None  # only pairs that are proven are tried
        return found

    if sampling.counts_in == "passes":
        assert steps_per_pass is not None
        return [(event(index), 1) for index in range(-(-steps // steps_per_pass))]
    return [(event(0), steps)]


def _powers(most: int) -> Iterator[int]:
    """Yield 2, 4, 8, … up to `most`."""
    bands = 2
    while bands <= most:
        yield bands
        bands *= 2


def _size_of(option: NoiseOption) -> str:
    return "two buffers" if option.strategy.bands is None else f"{option.strategy.bands} bands"
