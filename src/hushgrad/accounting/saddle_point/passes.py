"""Passes over random batches and draws of a fixed size, alone or together with other steps: bounds by atoms.

A pass in which a record is in k of t random steps costs at most k passes in which it is in one of about t/k: for any
division of the t steps into k blocks, one step of each block at random, with the blocks a random relabelling of the
steps, is a uniform set of k; and to be told the blocks only tells more (Feldman & Shenfeld, 2025, arXiv:2502.08202). It
costs at least what the sum of all its releases does, which is N(0, tσ²) or N(k, tσ²). For k = 1 both sides are within a
fraction of a percent of each other; for k > 1 the lower one is only true. Of draws of a fixed size no lower side is
known: it leaves them out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hushgrad.accounting.allocation.fixed_size import fixed_size_losses
from hushgrad.accounting.allocation.one_pass import LOWER, UPPER, delta_of, epsilon_of, pass_losses
from hushgrad.accounting.bounds import DeltaBounds, EpsilonBounds
from hushgrad.accounting.composition import NormalForm, Sampled
from hushgrad.accounting.gaussian import gaussian_epsilon, log_delta
from hushgrad.accounting.saddle_point.contour import Contour, log_delta_estimate, saddle_point
from hushgrad.accounting.saddle_point.loss_sum import Counted, LossSum, Steps, steps_of
from hushgrad.accounting.saddle_point.search import DROPPED, REACH_OF_ATOMS, most_of_add, of_direction
from hushgrad.accounting.saddle_point.step_measure import ADD, REMOVE
from hushgrad.errors import AccountingError

SMALLEST_DELTA = 1e-30

_TAIL = 1e-6  # of δ, for what the measures do not look at closely
_TAIL_OF_DELTA = 1e-24
_ROUNDING = 2e-8
_LAST_DIGITS = 1e-12  # of an ε that is read from a sum


@dataclass(frozen=True, slots=True)
class _Side:
    """A form as what encloses it from one side: passes of one participation, sampled steps and a Gaussian release."""

    name: str
    passes: tuple[tuple[int, float, int], ...]
    fixed_size: tuple[Sampled, ...]
    sampled: tuple[Sampled, ...]
    precision: float

    def losses(self, direction: str, tail: float) -> tuple[Steps, Counted]:
        """Return the losses of steps and passes in one direction."""
        passes = [(pass_losses(bins, noise, direction, self.name, tail), count) for bins, noise, count in self.passes]
        draws = [(fixed_size_losses(rate, noise, tail), count) for rate, noise, count in self.fixed_size]
        return steps_of(self.sampled, direction), (*passes, *draws)

    @property
    def is_empty(self) -> bool:
        return not (self.passes or self.fixed_size or self.sampled or self.precision)

    @property
    def is_gaussian(self) -> bool:
        return not (self.passes or self.fixed_size or self.sampled)

    @property
    def is_one_of_atoms(self) -> bool:
        return not (self.sampled or self.precision) and [n for *_, n in (*self.passes, *self.fixed_size)] == [1]


def _side(form: NormalForm, name: str) -> _Side:
    passes: Counter[tuple[int, float]] = Counter()
    precision = [form.gaussian_precision]
    for bins, participations, noise, count in form.allocated:
        if participations == 1:
            passes[bins, noise] += count
        elif name == LOWER:
            precision.append(count * participations**2 / (bins * noise**2))
        else:
            size, longer = divmod(bins, participations)
            for block, number in ((size, participations - longer), (size + 1, longer)):
                if block == 1:
                    precision.append(count * number / noise**2)
                elif number:
                    passes[block, noise] += count * number
    counted = tuple((*key, count) for key, count in sorted(passes.items()))
    fixed_size = form.fixed_size if name == UPPER else ()  # what is left out makes ε smaller
    return _Side(name, counted, fixed_size, form.sampled, math.fsum(precision))


def epsilon_of_passes(form: NormalForm, delta: float) -> EpsilonBounds:
    """Return bounds on the smallest ε >= 0 at which a form with random batches, or fixed sizes, is (ε, δ)-private.

    Guarantee: `upper` is an ε that holds; no ε below `lower` does.

    Raises `AccountingError` for δ below 1e-30.
    """
    if delta < SMALLEST_DELTA:
        raise AccountingError(
            f"passes over random batches (balls in bins) and draws of a fixed size are computed for delta >= "
            f"{SMALLEST_DELTA:g}, got {delta:g}",
            where="accountant 'saddle-point'",
            cure="Use accountant='rdp', an upper bound without amplification, or a larger delta",
        )
    upper, lower = _epsilon(_side(form, UPPER), delta), _epsilon(_side(form, LOWER), delta)
    return EpsilonBounds(min(lower, upper), upper)


def _epsilon(side: _Side, delta: float) -> float:
    """Return ε in the worse direction, on this side of the truth."""
    outward = 1 + _ROUNDING if side.name == UPPER else 1 - _ROUNDING
    if side.is_gaussian:
        return gaussian_epsilon(side.precision, delta) * outward
    tail = _tail_for(side, _TAIL * delta)
    found = 0.0
    for direction in (REMOVE, ADD):
        steps, atoms = side.losses(direction, tail)
        if side.is_one_of_atoms:
            alone = epsilon_of(atoms[0][0], delta)
            found = max(found, alone + math.copysign(_LAST_DIGITS, outward - 1) if alone else 0.0)
        elif direction == REMOVE or most_of_add(steps, side.precision, found, delta, atoms) > delta:
            bounds = of_direction(steps, side.precision, delta, atoms)
            found = max(found, bounds.upper if side.name == UPPER else bounds.lower)
    return found * outward


def _tail_for(side: _Side, most: float) -> float:
    """Return the part of each pass or draw that is not looked at closely, a power of ten: at most `most` in all."""
    count = sum(count for *_, count in (*side.passes, *side.fixed_size))
    return 10.0 ** math.floor(math.log10(most / (64 * max(count, 1))))


def delta_of_passes(form: NormalForm, epsilon: float, directions: Sequence[str]) -> DeltaBounds:
    """Return bounds on δ(`epsilon`), `epsilon` >= 0, in the worse of `directions`; about 1e-24 is added to the upper.

    Guarantee: δ(ε) lies between them.
    """
    upper, lower = (_delta(_side(form, name), epsilon, directions) for name in (UPPER, LOWER))
    return DeltaBounds(min(lower, upper), upper)


def _delta(side: _Side, epsilon: float, directions: Sequence[str]) -> float:
    outward = 1 + _ROUNDING if side.name == UPPER else 1 - _ROUNDING
    if side.is_empty:
        return 0.0
    if side.is_gaussian:
        return math.exp(log_delta(math.sqrt(side.precision), epsilon)) * outward
    tail = _tail_for(side, _TAIL_OF_DELTA)
    found = []
    for direction in directions:
        steps, atoms = side.losses(direction, tail)
        if side.is_one_of_atoms:
            found.append(delta_of(atoms[0][0], epsilon))
            continue
        rough = LossSum(steps, side.precision, 1e-20, atoms)
        guess = math.exp(max(log_delta_estimate(rough, saddle_point(rough, epsilon), epsilon), -600.0))
        total = LossSum(steps, side.precision, DROPPED[1] * min(guess, 0.9), atoms)
        bounds = Contour(total, saddle_point(total, epsilon), epsilon, min(guess, 0.9), REACH_OF_ATOMS).bounds(epsilon)
        found.append(bounds.upper if side.name == UPPER else bounds.lower)
    return min(max(found) * outward, 1.0)
