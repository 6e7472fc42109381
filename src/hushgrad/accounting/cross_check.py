"""The same ε by several accountants, which must agree within what they promise."""

from __future__ import annotations

import math

from hushgrad.accounting.accountants import ACCOUNTANTS, epsilon_bounds
from hushgrad.accounting.bounds import EpsilonBounds
from hushgrad.accounting.composition import Composition
from hushgrad.errors import AccountingError

CLOSENESS_OF_PLD = 0.02
"""How far above the exact ε the grid of privacy loss distributions may end; 1.4% is the most that was measured."""

_DIGITS = 1e-9


def cross_check(composition: Composition, delta: float) -> dict[str, EpsilonBounds]:
    """Return bounds on ε by every accountant that answers; those that refuse are left out.

    Guarantee: no accountant's upper bound lies below another one's lower bound, and privacy loss distributions are at
    most 2% above the saddle-point accountant; else `AccountingError` names both figures.
    """
    found: dict[str, EpsilonBounds] = {}
    refusals = []
    for name in ACCOUNTANTS:
        try:
            found[name] = epsilon_bounds(composition, delta, name)
        except AccountingError as error:
            refusals.append(str(error))
    if not found:
        raise AccountingError(f"no accountant answers: {refusals[0]}")
    for name, bounds in found.items():
        for other, others in found.items():
            if bounds.upper < others.lower * (1 - _DIGITS):
                raise AccountingError(
                    f"accountants disagree: {name!r} says epsilon <= {bounds.upper:.8g}, {other!r} says epsilon >= "
                    f"{others.lower:.8g}; please report this plan, and quote the larger figure"
                )
    if {"pld", "saddle-point"} <= found.keys():
        sharp, grid = found["saddle-point"].upper, found["pld"].upper
        if math.isfinite(grid) and grid > sharp * (1 + CLOSENESS_OF_PLD) + 1e-6:
            raise AccountingError(
                f"accountants disagree: 'pld' says epsilon = {grid:.8g}, 'saddle-point' {sharp:.8g}, more than "
                f"{CLOSENESS_OF_PLD:.0%} apart; please report this plan, and quote the larger figure"
            )
    return found
