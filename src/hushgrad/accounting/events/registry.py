"""The kinds of events that can be charged and read: those of hushgrad, and those that a program registers.

The order in which kinds are registered is the order of their sentences in a guarantee.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from hushgrad.accounting.events.balls_in_bins import BallsInBins
from hushgrad.accounting.events.cyclic_poisson import CyclicPoisson
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.event import JSON, RELATIONS, Event
from hushgrad.accounting.events.fixed_order import FixedOrder
from hushgrad.accounting.events.fixed_order_buffered import FixedOrderBuffered
from hushgrad.accounting.events.fixed_size import FixedSizeSampled
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.events.not_established import NotEstablished
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.events.random_allocation import RandomAllocation
from hushgrad.accounting.events.release import Release, ReplacedRelease, ZeroedOutRelease
from hushgrad.accounting.events.renyi_filter import RenyiFilter
from hushgrad.accounting.events.truncated_poisson import TruncatedPoisson
from hushgrad.errors import HushgradError, InvalidArgumentError

_KINDS: dict[tuple[str, int], type[Event]] = {}

_TAKEN = {"type", "version", "count"}
"""Names that stand beside an event's fields where it is written."""

_Kind = TypeVar("_Kind", bound=type[Event])


def register_event(kind: _Kind) -> _Kind:
    """Make `kind` chargeable and readable; return it, so that this is also a class decorator (above `@dataclass`).

    Guarantee: a type and version that are taken are refused, and the first meaning of what a ledger holds stays.

    What `kind.add_to` adds is taken at its word: an ε is as true as that. A program that reads the ledger must have
    registered the kind too. Raises `InvalidArgumentError` naming all that is wrong with `kind`.
    """
    if not (isinstance(kind, type) and issubclass(kind, Event)):
        got = kind.__name__ if isinstance(kind, type) else type(kind).__name__
        raise InvalidArgumentError(
            f"must be a subclass of Event, got {got}",
            where="kind",
            cure="Derive the class from hushgrad.accounting.Event",
        )
    wrong = _wrong_with(kind)
    if wrong:
        raise InvalidArgumentError(
            f"cannot be registered as an event: {'; '.join(wrong)}",
            where=kind.__name__,
            cure="Change the class, then register it",
        )
    key = (kind.type, kind.version)
    if key in _KINDS:
        raise InvalidArgumentError(
            f"an event of type {kind.type} version {kind.version} is registered already, and its meaning must not "
            f"change",
            where=kind.__name__,
            cure="Give a new meaning a new version",
        )
    _KINDS[key] = kind
    return kind


def _wrong_with(kind: type[Event]) -> list[str]:
    wrong = []
    # Of its own, not of its parent: else fields that it adds would not be written.
    parameters = vars(kind).get("__dataclass_params__")
    if parameters is None or not (parameters.frozen and parameters.eq):
        wrong.append("it must be a frozen dataclass itself: @dataclass(frozen=True)")
    else:
        names = {field.name for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
        if "noise_multiplier" not in names:
            wrong.append("it must have the field noise_multiplier")
        if len(names) < len(dataclasses.fields(kind)):  # type: ignore[arg-type]
            wrong.append("all its fields must be arguments: an event is made again from what was written")
        if names & _TAKEN:
            wrong.append(f"its fields must have other names than {sorted(names & _TAKEN)}")
        unequal = sorted(field.name for field in dataclasses.fields(kind) if not field.compare)  # type: ignore[arg-type]
        if unequal:
            wrong.append(f"equal events are charged as one, so no field may be left out of that: {', '.join(unequal)}")
    if inspect.isabstract(kind):
        wrong.append(f"it must define {', '.join(sorted(kind.__abstractmethods__))}")
    if kind.to_json is not Event.to_json:
        wrong.append("it must be written as every event is: remove its to_json")
    name, version = getattr(kind, "type", None), getattr(kind, "version", None)
    if not (isinstance(name, str) and name.isascii() and name.isidentifier()):
        wrong.append("its type must be a name of ASCII letters, digits and underscores")
    if type(version) is not int or version < 1:
        wrong.append("its version must be a whole number >= 1")
    if getattr(kind, "adjacency", None) not in RELATIONS:
        wrong.append(f"its adjacency must be one of {', '.join(RELATIONS)}")
    return wrong


def event_to_json(event: Event) -> JSON:
    """Return `event` as the JSON object to be written.

    Guarantee: an event that could not be read again is refused before it is written.

    Raises `InvalidArgumentError` for an event of a kind that is not registered, or with a value that JSON cannot hold
    as it is.
    """
    if not isinstance(event, Event) or _KINDS.get((event.type, event.version)) is not type(event):
        raise InvalidArgumentError(
            "this kind of event is not registered, so its ledger could not be read again",
            where=type(event).__name__,
            cure="Call hushgrad.accounting.register_event with the class first",
        )
    written = event.to_json()
    odd = [name for name, value in written.items() if not _is_plain(value)]
    if odd:
        raise InvalidArgumentError(
            f"an event must hold plain, finite numbers and text; these fields hold something else: {', '.join(odd)}",
            where=event.type,
            cure="Convert them where the event is made (__post_init__)",
        )
    return written


def _is_plain(value: object) -> bool:
    return type(value) in (str, int, bool, type(None)) or (type(value) is float and math.isfinite(value))


def is_own(kind: type[Event]) -> bool:
    """Return whether the kind is one of hushgrad's; one of somebody else's is named in every guarantee."""
    return kind in _OWN


def order_of(kind: type[Event]) -> int:
    """Return the place of `kind` among those registered; after them all where it is not."""
    kinds = list(_KINDS.values())
    return kinds.index(kind) if kind in kinds else len(kinds)


def event_from_json(value: Mapping[str, Any]) -> Event:
    """Return the event that `to_json` wrote.

    Guarantee: reading what was written gives an equal event, and anything else is refused.

    Raises `InvalidArgumentError` for an unknown type or version, a missing or unknown field, or a value out of range.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(
            f"an event must be a JSON object, got {type(value).__name__}", cure="Pass what Event.to_json returned"
        )
    name, version = value.get("type"), value.get("version")
    if not isinstance(name, str) or type(version) is not int or (name, version) not in _KINDS:
        known = ", ".join(f"{type_} version {number}" for type_, number in _KINDS)
        raise InvalidArgumentError(
            f"the event's type or version is unknown: this program reads {known}",
            cure="Read it with a newer hushgrad, or register its kind first (hushgrad.accounting.register_event)",
        )
    kind = _KINDS[name, version]
    expected = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = set(value) - {"type", "version"}
    if given != expected:
        raise InvalidArgumentError(
            f"an event of type {name} must have the fields {sorted(expected)}, got {sorted(map(str, given))}",
            cure="Pass what Event.to_json returned",
        )
    try:
        return kind(**{field: value[field] for field in expected})
    except HushgradError:
        raise
    except Exception as error:  # somebody else's check of its own fields
        raise InvalidArgumentError(
            f"the kind {kind.__name__} refuses what was written of it with {type(error).__name__}",
            where=f"an event of type {name} version {version}",
            cure="Let a version of a kind accept all that it once wrote; give new rules a new version",
        ) from None


_OWN = (
    PoissonSampled,
    Gaussian,
    TruncatedPoisson,
    FixedSizeSampled,
    RandomAllocation,
    BallsInBins,
    DisjointPass,
    CyclicPoisson,
    FixedOrder,
    FixedOrderBuffered,
    Release,
    ZeroedOutRelease,
    ReplacedRelease,
    NotEstablished,
    RenyiFilter,
)
for _kind in _OWN:
    register_event(_kind)
