"""The same ε by several accountants, which must agree within what they promise."""

from __future__ import annotations

from hushgrad.accounting.accountants import ACCOUNTANTS, epsilon_bounds
from hushgrad.accounting.bounds import EpsilonBounds
from hushgrad.accounting.composition import Composition
from hushgrad.errors import AccountingError

_DIGITS = 1e-9


def cross_check(composition: Composition, delta: float) -> dict[str, EpsilonBounds]:
    """Return bounds on ε by every accountant that answers; those that refuse are left out.

    Guarantee: no accountant's upper bound lies below another one's lower bound; else `AccountingError` names both
    figures. An upper bound far above the others is loose, which is no contradiction: read the figures.
    """
    found: dict[str, EpsilonBounds] = {}
    refusals = []
    for name in ACCOUNTANTS:
        try:
            found[name] = epsilon_bounds(composition, delta, name)
        except AccountingError as error:
            refusals.append(error)
    if not found:
        first = refusals[0]
        raise AccountingError(f"no accountant answers: {first.what}", where=first.where, cure=first.cure)
    for name, bounds in found.items():
        for other, others in found.items():
            if bounds.upper < others.lower * (1 - _DIGITS):
                raise AccountingError(
                    f"accountants disagree: {name!r} says epsilon <= {bounds.upper:.8g}, {other!r} says epsilon >= "
                    f"{others.lower:.8g}",
                    cure="Quote the larger figure, and please report this plan to hushgrad's authors",
                )
    return found
