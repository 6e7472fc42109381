"""Accountants: functions from what ran to ε at a given δ, each with the domain in which it is correct.

    epsilon(ledger.events(), delta=1e-5)

A new accountant is one more row here; a program adds one of its own by `register_accountant`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from hushgrad.accounting.bounds import EpsilonBounds
from hushgrad.accounting.composition import Composition, NormalForm, normal_form
from hushgrad.accounting.floating_point import usual_floating_point
from hushgrad.accounting.truncation import epsilon_with_truncation, least_with_truncation
from hushgrad.arguments import one_of, open_unit_interval
from hushgrad.errors import AccountingError, InvalidArgumentError

DEFAULT_ACCOUNTANT = "saddle-point"


@dataclass(frozen=True, slots=True)
class Accountant:
    """One way to compute ε.

    `bounds` maps `(normal form, delta)` to bounds on ε, of which the upper one is quoted; it is called only for forms
    that release something with noise. `smallest_delta` is the least δ at which it is correct for sampled events; below
    it `hushgrad.accounting.epsilon` refuses. Compositions without sampling have an exact formula and no such limit
    (`exact_without_sampling`). `states_error` says whether the lower bound means anything, or is only 0.
    """

    name: str
    bounds: Callable[[NormalForm, float], EpsilonBounds]
    smallest_delta: float
    exact_without_sampling: bool
    states_error: bool
    description: str


def _saddle_point(form: NormalForm, delta: float) -> EpsilonBounds:
    # Imported on use: a help text or a ledger needs neither scipy nor dp_accounting.
    from hushgrad.accounting.saddle_point.accountant import epsilon_bounds as saddle_point_bounds

    return saddle_point_bounds(form, delta)


def _pld(form: NormalForm, delta: float) -> EpsilonBounds:
    from hushgrad.accounting.pld.accountant import pld_epsilon

    return EpsilonBounds(0.0, pld_epsilon(form, delta))


def _rdp(form: NormalForm, delta: float) -> EpsilonBounds:
    from hushgrad.accounting.rdp import rdp_epsilon

    return EpsilonBounds(0.0, rdp_epsilon(form, delta))


_KNOWN = {
    accountant.name: accountant
    for accountant in (
        Accountant("saddle-point", _saddle_point, 1e-150, True, True, "contour integral with an error bound"),
        Accountant("pld", _pld, 1e-8, True, False, "privacy loss distributions"),
        Accountant("rdp", _rdp, 0.0, False, False, "Rényi differential privacy, an upper bound"),
    )
}

ACCOUNTANTS: Mapping[str, Accountant] = MappingProxyType(_KNOWN)
"""All accountants by name: those of hushgrad, and those that a program registered."""

OWN_ACCOUNTANTS = frozenset(_KNOWN)
"""The names of hushgrad's."""


def register_accountant(accountant: Accountant) -> Accountant:
    """Make an accountant of somebody else's known by its name; return it.

    Its upper bound is taken at its word where it is above what is known to be spent: every ε of it is held against the
    lower bound of the default accountant, and a guarantee names it as a third party's.

    Raises `InvalidArgumentError` where it is no `Accountant`, or its name is taken.
    """
    if not isinstance(accountant, Accountant):
        raise InvalidArgumentError(
            f"an accountant must be an Accountant(name, bounds, ...), got {type(accountant).__name__}",
            cure="Make a hushgrad.accounting.accountants.Accountant of it",
        )
    _require_well_formed(accountant)
    if accountant.name in _KNOWN:
        raise InvalidArgumentError(
            f"an accountant {accountant.name!r} is registered already", cure="Give this one a name of its own"
        )
    _KNOWN[accountant.name] = accountant
    return accountant


def _require_well_formed(accountant: Accountant) -> None:
    wrong = [
        f"{part} must be one printable line of text"
        for part, text in (("name", accountant.name), ("description", accountant.description))
        if not (isinstance(text, str) and text.strip() and text.isprintable())
    ]
    least = accountant.smallest_delta
    if isinstance(least, bool) or not isinstance(least, numbers.Real) or not 0 <= float(least) < 1:
        wrong.append("smallest_delta must be a number in [0, 1)")
    if not callable(accountant.bounds):
        wrong.append("bounds must be a function")
    wrong += [
        f"{part} must be True or False"
        for part in ("exact_without_sampling", "states_error")
        if not isinstance(getattr(accountant, part), bool)
    ]
    if wrong:
        raise InvalidArgumentError(
            f"this accountant cannot be registered: {'; '.join(wrong)}", cure="Change these fields, then register it"
        )


def epsilon(composition: Composition, delta: float, accountant: str = DEFAULT_ACCOUNTANT) -> float:
    """Return ε such that everything in `composition` together is (ε, δ)-differentially private per record.

    Guarantee: never negative, never NaN; 0 for a composition that released nothing; infinity where a release had no
    noise. A figure that the accountant cannot compute truthfully is refused.

    `composition` is a list of `(event, count)`, as `Ledger.events()` returns. `delta` lies in (0, 1). Raises
    `InvalidArgumentError` for a bad `delta`, count or accountant, and `AccountingError` for mixed neighbouring
    relations and for a `delta` outside the accountant's domain.
    """
    return epsilon_bounds(composition, delta, accountant).upper


@usual_floating_point()
def epsilon_bounds(composition: Composition, delta: float, accountant: str = DEFAULT_ACCOUNTANT) -> EpsilonBounds:
    """Return bounds on the smallest ε that holds at `delta`; the upper one is what `epsilon` returns.

    Guarantee: the upper bound holds. The lower one is 0 for accountants that do not state their error. Arguments and
    errors are those of `epsilon`.
    """
    delta = open_unit_interval("delta", delta, "Pass less than 1 / the number of examples")
    chosen = ACCOUNTANTS[one_of("accountant", accountant, tuple(ACCOUNTANTS))]
    form = normal_form(composition)
    if form.empty:
        return EpsilonBounds(0.0, 0.0)
    if form.noiseless:
        return EpsilonBounds(math.inf, math.inf)
    if form.filter is not None:  # whichever accountant is asked: a sum of chosen steps is no ε
        from hushgrad.accounting.filter import epsilon_under_filter

        return EpsilonBounds(0.0, epsilon_under_filter(form.filter, composition, delta))
    if delta < chosen.smallest_delta and (form.is_sampled or not chosen.exact_without_sampling):
        other = "rdp" if chosen.states_error else DEFAULT_ACCOUNTANT
        raise AccountingError(
            f"this accountant is correct for delta >= {chosen.smallest_delta:g}, got delta = {delta:g}: its rounding "
            f"hides smaller tails",
            where=f"accountant {chosen.name!r}",
            cure=f"Use accountant={other!r}, or a larger delta",
        )
    if form.truncated:
        most = epsilon_with_truncation(form, delta, lambda plain, share: _asked(chosen, plain, share).upper)
        least = least_with_truncation(form, delta, partial(_least, chosen)) if chosen.states_error else 0.0
        result = EpsilonBounds(least, max(most, least))
    else:
        result = _asked(chosen, form, delta)
    if math.isnan(result.upper) or result.upper < 0:
        raise AccountingError(
            "this accountant found no epsilon for this composition",
            where=f"accountant {chosen.name!r}",
            cure=f"Use another one of {', '.join(ACCOUNTANTS)}",
        )
    if chosen.name not in OWN_ACCOUNTANTS:
        _require_known_loss(chosen, result, form, delta)
    return result


def _least(chosen: Accountant, form: NormalForm, delta: float) -> float:
    return _asked(chosen, form, delta).lower


def _asked(chosen: Accountant, form: NormalForm, delta: float) -> EpsilonBounds:
    """Return the accountant's bounds; of somebody else's, refuse what are none."""
    if chosen.name in OWN_ACCOUNTANTS:
        return chosen.bounds(form, delta)
    plain = form.without_allocation()  # a field that an accountant does not read must not cost nothing
    found = chosen.bounds(plain, delta)
    if isinstance(found, EpsilonBounds) and all(isinstance(part, numbers.Real) for part in (found.lower, found.upper)):
        lower, upper = float(found.lower), float(found.upper)
        if not lower > upper:
            return EpsilonBounds(lower if lower >= 0 and plain == form else 0.0, upper)
    raise AccountingError(
        "this accountant returned something else than EpsilonBounds(lower, upper) of two numbers, the lower first",
        where=f"accountant {chosen.name!r}",
        cure=f"Use accountant={DEFAULT_ACCOUNTANT!r}, and mend that accountant",
    )


def _require_known_loss(chosen: Accountant, found: EpsilonBounds, form: NormalForm, delta: float) -> None:
    """Refuse an ε below what is known to be spent; of steps of a fixed size no lower bound is known."""
    if form.fixed_size:
        return
    least = least_with_truncation(form, delta, partial(_least, ACCOUNTANTS[DEFAULT_ACCOUNTANT]))
    if found.upper < least:
        raise AccountingError(
            f"accountant {chosen.name!r} claims a smaller epsilon than is known to be spent",
            cure=f"Use accountant={DEFAULT_ACCOUNTANT!r}, and mend that accountant",
        )
