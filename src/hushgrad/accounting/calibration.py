"""The smallest noise multiplier that keeps a planned composition within a target ε."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from hushgrad.accounting.accountants import DEFAULT_ACCOUNTANT
from hushgrad.accounting.composition import Composition, normal_form
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.events.random_allocation import RandomAllocation
from hushgrad.accounting.neighbours import epsilon_of_group
from hushgrad.accounting.truncation import as_if_never_cut
from hushgrad.arguments import open_unit_interval, positive_number, probability, whole_number
from hushgrad.errors import UnreachableTargetError

SMALLEST_NOISE_MULTIPLIER = 0.01
LARGEST_NOISE_MULTIPLIER = 1e6
TOLERANCE = 2e-4
_FAR_OFF = 0.7


def poisson_steps(sampling_rate: float, steps: int) -> Callable[[float], Composition]:
    """Return the composition, as a function of the noise multiplier, of `steps` Poisson-sampled steps."""
    rate = probability("sampling_rate", sampling_rate)
    count = whole_number("steps", steps, minimum=1)
    return lambda noise_multiplier: [(PoissonSampled(rate, noise_multiplier), count)]


def disjoint_passes(passes: int) -> Callable[[float], Composition]:
    """Return the composition, as a function of the noise multiplier, of `passes` passes over disjoint batches.

    One step of each pass stands for all of them: they cost a record no more than one.
    """
    count = whole_number("passes", passes, minimum=1)
    return lambda noise_multiplier: [(DisjointPass(noise_multiplier, index), 1) for index in range(count)]


def allocated_passes(bins: int, passes: int, participations: int = 1) -> Callable[[float], Composition]:
    """Return the composition, as a function of the noise multiplier, of `passes` passes over random batches.

    Every record is in `participations` random steps of the `bins` of each pass. One step of each pass stands for all of
    them: a pass is charged whole.
    """
    count = whole_number("passes", passes, minimum=1)
    first = RandomAllocation(bins, 1.0, 0, participations)  # refuses what is out of range
    return lambda noise_multiplier: [
        (RandomAllocation(first.bins, noise_multiplier, index, first.participations), 1) for index in range(count)
    ]


def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    target_delta: float,
    composition: Callable[[float], Composition],
    accountant: str = DEFAULT_ACCOUNTANT,
    group_size: int = 1,
) -> float:
    """Return the smallest noise multiplier at which `composition(noise_multiplier)` spends at most `target_epsilon`.

    Guarantee: ε at the result is at most the target, and the result is within a relative 2e-4 of the smallest such
    noise multiplier (or is 0.01, below which nothing is tried).

    `composition` gives what will run at a given noise multiplier, and ε must fall as that grows: `poisson_steps(q, T)`,
    `disjoint_passes(K)`, `allocated_passes(t, K)` or any other. With a `group_size` k, ε is that of k records at once.
    Raises `InvalidArgumentError` for targets out of range, and `UnreachableTargetError` where even a noise multiplier
    of 1e6 spends more.
    """
    target = positive_number("target_epsilon", target_epsilon)
    delta = open_unit_interval("target_delta", target_delta, "Pass less than 1 / the number of examples")
    search = _Search(lambda noise: epsilon_of_group(composition(noise), delta, group_size, accountant).upper, target)
    # A group moves the sum by so many clip norms at most: roughly one record under so much less noise.
    guess, rough = _first_guess(lambda noise: composition(noise / group_size), target, delta)
    search(guess)
    if 0 < search.seen[guess] < math.inf:
        # Where the guess is off by a factor, its model is off by about the same factor nearby.
        guess = rough(target * target / search.seen[guess])
    low, high = _bracket(search, guess, accountant)
    if low is None:
        return high
    # The secant of log ε against log σ, and then one point on its other side, close the bracket from both ends.
    while high > low * (1 + TOLERANCE):
        estimate = search.secant(low, high)
        search(estimate)
        low, high = search.bracket(low, high)
        if high <= low * (1 + TOLERANCE):
            break
        other = high * (1 - TOLERANCE * 0.9) if high == estimate else low * (1 + TOLERANCE * 0.9)
        search(other)
        low, high = search.bracket(low, high)
        if high > low * (1 + TOLERANCE):
            search(math.sqrt(low * high))
            low, high = search.bracket(low, high)
    return high


@dataclass(slots=True)
class _Search:
    """Evaluates ε at noise multipliers and remembers what it found."""

    epsilon: Callable[[float], float]
    target: float
    seen: dict[float, float] = field(default_factory=dict)

    def __call__(self, noise_multiplier: float) -> bool:
        """Return whether `noise_multiplier` is enough."""
        if noise_multiplier not in self.seen:
            self.seen[noise_multiplier] = self.epsilon(noise_multiplier)
        return self.seen[noise_multiplier] <= self.target

    def bracket(self, low: float, high: float) -> tuple[float, float]:
        """Return the narrowest (not enough, enough) within [low, high] among what was evaluated."""
        inside = sorted(noise for noise in self.seen if low <= noise <= high)
        high = next(noise for noise in inside if self.seen[noise] <= self.target)
        return max(noise for noise in inside if noise < high), high

    def secant(self, low: float, high: float) -> float:
        """Return where the line through both ends, in logarithms, meets the target; inside the bracket."""
        above, below = self.seen[low], self.seen[high]
        fraction = 0.5
        if 0 < below < above < math.inf:
            fraction = math.log(above / self.target) / math.log(above / below)
        return float(low * (high / low) ** min(max(fraction, 0.02), 0.98))


def _bracket(search: _Search, guess: float, accountant: str) -> tuple[float | None, float]:
    factor = 1.02
    start = min(max(guess, SMALLEST_NOISE_MULTIPLIER), LARGEST_NOISE_MULTIPLIER)
    low = high = start
    if search(start):
        while search(low):
            if low <= SMALLEST_NOISE_MULTIPLIER:
                return None, low
            low, high, factor = max(low / factor, SMALLEST_NOISE_MULTIPLIER), low, factor**2
        return low, high
    while not search(high):
        if high >= LARGEST_NOISE_MULTIPLIER:
            other = f", or accountant={DEFAULT_ACCOUNTANT!r}" if accountant != DEFAULT_ACCOUNTANT else ""
            raise UnreachableTargetError(
                f"{search.target:g} cannot be reached: even a noise multiplier of {high:g} spends "
                f"{search.seen[high]:.4g}, as accountant {accountant!r} computes it",
                where="target_epsilon",
                cure=f"Use a larger epsilon or delta, fewer steps, a smaller sampling rate{other}",
            )
        low, high, factor = high, min(high * factor, LARGEST_NOISE_MULTIPLIER), factor**2
    return low, high


def _first_guess(
    composition: Callable[[float], Composition], target: float, delta: float
) -> tuple[float, Callable[[float], float]]:
    """Return a noise multiplier that spends about `target`, and the model it is from: from an ε to a noise multiplier.

    The central limit of the privacy loss costs nothing; where the saddle-point approximation says that it is far off
    (large ε, few records that take part), that approximation is the model.
    """
    limit = partial(_gaussian_limit, composition, delta)
    guess = _bisect(limit, target)
    nearer = partial(_saddle_point_approximation, composition, delta)
    if _FAR_OFF < nearer(guess) / target < 1 / _FAR_OFF:
        return guess, partial(_bisect, limit)
    return _bisect(nearer, target, 1e-3), partial(_bisect, nearer, within=1e-3)


def _gaussian_limit(composition: Callable[[float], Composition], delta: float, noise_multiplier: float) -> float:
    """Return roughly ε at `noise_multiplier`, by the central limit of the privacy loss; only a first guess."""
    from hushgrad.accounting.gaussian import gaussian_epsilon

    form = as_if_never_cut(normal_form(composition(noise_multiplier))).as_if_independent()
    precision = form.gaussian_precision
    for rate, noise, count in form.sampled:
        precision += count * rate**2 * math.expm1(min(noise**-2, 500.0))
    return gaussian_epsilon(precision, delta)


def _saddle_point_approximation(
    composition: Callable[[float], Composition], delta: float, noise_multiplier: float
) -> float:
    from hushgrad.accounting.saddle_point.accountant import rough_epsilon

    return rough_epsilon(as_if_never_cut(normal_form(composition(noise_multiplier))).as_if_independent(), delta)


def _bisect(rough: Callable[[float], float], target: float, within: float = 1e-6) -> float:
    low, high = SMALLEST_NOISE_MULTIPLIER, LARGEST_NOISE_MULTIPLIER
    while high > low * (1 + within):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if rough(middle) <= target else (middle, high)
    return high
