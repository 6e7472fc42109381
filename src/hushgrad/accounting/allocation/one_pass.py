"""The privacy loss of one pass in which a record is in one random batch of `bins`, from either side, as atoms."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from hushgrad.accounting.allocation.gathered import Gathered
from hushgrad.accounting.allocation.ratio import Array, Ratio, sum_of
from hushgrad.accounting.allocation.spread import Spread
from hushgrad.accounting.saddle_point.atoms import Atoms
from hushgrad.accounting.saddle_point.step_measure import REMOVE

UPPER, LOWER = "upper", "lower"

_SIDES: dict[str, type[Ratio]] = {UPPER: Spread, LOWER: Gathered}
_LOGARITHM = 1e-14
"""What the logarithm of a value up to 1e300 and its quotient by `bins` may be wrong by."""


@lru_cache(maxsize=32)
def _ratio(bins: int, noise_multiplier: float, side: str, tail: float) -> Ratio:
    return sum_of(_SIDES[side], noise_multiplier, bins, tail)


@lru_cache(maxsize=64)
def pass_losses(bins: int, noise_multiplier: float, direction: str, side: str, tail: float) -> Atoms:
    """Return the losses of a pass in a direction ("remove", "add").

    Guarantee: δ(ε), also of a composition with it, is at least (`UPPER`), or at most (`LOWER`), the true one.

    `bins` >= 2, `noise_multiplier` from `costs.LEAST_ALLOCATED_NOISE` to 1e6; about the part `tail` is not looked at
    closely, and for `UPPER` counts as lost.
    """
    ratio = _ratio(bins, noise_multiplier, side, tail)
    sign = 1.0 if side == UPPER else -1.0
    live = ratio.values > 0
    values, masses = ratio.values[live] / bins, ratio.masses[live]
    infinite = 0.0
    if direction == REMOVE:
        masses = masses * values
        losses: Array = np.log(values)
        if isinstance(ratio, Spread):
            infinite = ratio.beyond / bins
    else:
        losses = -np.log(values)
        infinite = float(ratio.masses[~live].sum())
    scale = 1 + sign * (ratio.slack + ratio.drift + 1e-14)
    held = masses > 0
    log_weights = np.log(masses[held] * scale)
    return Atoms(losses[held] + sign * (ratio.drift + _LOGARITHM), log_weights, infinite * scale)


def epsilon_of(atoms: Atoms, delta: float) -> float:
    """Return the smallest ε >= 0 at which the losses alone spend at most `delta`, up to rounding."""
    order = np.argsort(atoms.losses)[::-1]
    losses, weights = atoms.losses[order], np.exp(atoms.log_weights[order])
    if delta_of(atoms, 0.0) <= delta:
        return 0.0
    # Above the n largest losses δ(ε) = infinite + Σ w − e^ε Σ w e^{−ℓ}, and δ falls with ε.
    mass = atoms.infinite + np.cumsum(weights)
    shrunk = np.cumsum(weights * np.exp(-losses))
    at_next = mass - np.exp(np.append(losses[1:], -math.inf)) * shrunk  # δ at the next loss below
    place = int(np.searchsorted(np.maximum.accumulate(at_next), delta, side="right"))
    place = min(place, len(losses) - 1)
    return max(0.0, math.log((mass[place] - delta) / shrunk[place]))


def delta_of(atoms: Atoms, epsilon: float) -> float:
    """Return δ(`epsilon`) of the losses alone."""
    above = atoms.losses > epsilon
    parts = np.exp(atoms.log_weights[above]) * -np.expm1(epsilon - atoms.losses[above])
    return min(atoms.infinite + float(parts.sum()), 1.0)
