"""Accountants: functions from what ran to ε at a given δ, each with the domain in which it is true.

    epsilon(ledger.events(), delta=1e-5)

A new accountant is one more row of `ACCOUNTANTS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hushgrad.accounting.composition import Composition, NormalForm, normal_form
from hushgrad.arguments import one_of, open_unit_interval
from hushgrad.errors import AccountingError


@dataclass(frozen=True, slots=True)
class Accountant:
    """One way to compute ε.

    `epsilon` maps `(normal form, delta)` to ε; it is asked only for forms that release something with noise.
    `smallest_delta` is the least δ at which it is true for sampled events; below it `hushgrad.accounting.epsilon`
    refuses. Compositions without sampling have an exact formula and no such limit (`exact_without_sampling`).
    """

    name: str
    epsilon: Callable[[NormalForm, float], float]
    smallest_delta: float
    exact_without_sampling: bool
    description: str


def _pld(form: NormalForm, delta: float) -> float:
    # Imported on use: a help text or a ledger needs neither scipy nor dp_accounting.
    from hushgrad.accounting.pld import pld_epsilon

    return pld_epsilon(form, delta)


def _rdp(form: NormalForm, delta: float) -> float:
    from hushgrad.accounting.rdp import rdp_epsilon

    return rdp_epsilon(form, delta)


ACCOUNTANTS: Mapping[str, Accountant] = MappingProxyType(
    {
        accountant.name: accountant
        for accountant in (
            Accountant("pld", _pld, 1e-8, True, "privacy loss distributions"),
            Accountant("rdp", _rdp, 0.0, False, "Rényi differential privacy, an upper bound"),
        )
    }
)


def epsilon(composition: Composition, delta: float, accountant: str = "pld") -> float:
    """Return ε such that everything in `composition` together is (ε, δ)-differentially private per record.

    Guarantee: never negative, never NaN; 0 for a composition that released nothing; infinity where a release had no
    noise. A figure that the accountant cannot compute truthfully is refused.

    `composition` is a list of `(event, count)`, as `Ledger.events()` returns. `delta` lies in (0, 1). Raises
    `InvalidArgumentError` for a bad `delta`, count or accountant, and `AccountingError` for mixed neighbouring
    relations and for a `delta` outside the accountant's domain.
    """
    delta = open_unit_interval("delta", delta, "usual: less than 1 / the number of records")
    chosen = ACCOUNTANTS[one_of("accountant", accountant, tuple(ACCOUNTANTS))]
    form = normal_form(composition)
    if form.empty:
        return 0.0
    if form.noiseless:
        return math.inf
    if delta < chosen.smallest_delta and (form.sampled or not chosen.exact_without_sampling):
        raise AccountingError(
            f"accountant {chosen.name!r} is true for delta >= {chosen.smallest_delta:g} (its rounding hides smaller "
            f"tails), got delta = {delta:g}; use accountant='rdp', a valid upper bound at any delta, or a larger delta"
        )
    value = chosen.epsilon(form, delta)
    if math.isnan(value) or value < 0:
        raise AccountingError(
            f"accountant {chosen.name!r} found no number for this composition; use another of {', '.join(ACCOUNTANTS)}"
        )
    return value
