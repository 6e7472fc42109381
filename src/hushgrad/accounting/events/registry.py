"""The kinds of events that can be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeAlias

from hushgrad.accounting.events.balls_in_bins import BallsInBins
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.accounting.events.fixed_size import FixedSizeSampled
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.events.truncated_poisson import TruncatedPoisson
from hushgrad.errors import InvalidArgumentError

Event: TypeAlias = Gaussian | PoissonSampled | DisjointPass | TruncatedPoisson | FixedSizeSampled | BallsInBins

_KINDS: tuple[type[Event], ...] = (
    Gaussian,
    PoissonSampled,
    DisjointPass,
    TruncatedPoisson,
    FixedSizeSampled,
    BallsInBins,
)
_READERS: dict[tuple[str, int], type[Event]] = {(kind.type, kind.version): kind for kind in _KINDS}


def event_from_json(value: Mapping[str, Any]) -> Event:
    """Return the event that `to_json` wrote.

    Guarantee: reading what was written gives an equal event, and anything else is refused.

    Raises `InvalidArgumentError` for an unknown type or version, a missing or unknown field, or a value out of range.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"an event must be a JSON object, got {type(value).__name__}")
    kind, version = value.get("type"), value.get("version")
    if not isinstance(kind, str) or type(version) is not int or (kind, version) not in _READERS:
        known = ", ".join(f"{name} version {number}" for name, number in _READERS)
        raise InvalidArgumentError(
            f"unknown event type or version; this hushgrad reads {known}; a newer one may read it"
        )
    reader = _READERS[kind, version]
    expected = {field.name for field in fields(reader)}
    given = set(value) - {"type", "version"}
    if given != expected:
        raise InvalidArgumentError(
            f"an event of type {kind} must have the fields {sorted(expected)}, got {sorted(given)}"
        )
    return reader(**{name: value[name] for name in expected})
