"""Privacy events: what one step did, completely enough to be charged and to be read again in years.

An event is data. It holds no curve and no accountant: `hushgrad.accounting.accountants` interprets it. A type or a
version that was once written to a ledger is never removed from this file.

Neighbouring relations (the "adjacency" printed beside every epsilon):

- add/remove-one: the two data sets differ by the presence of one record;
- zero-out: one record of the one is replaced, in its place, by a record that contributes nothing;
- replace-one: one record of the one is replaced, in its place, by any other record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

from hushgrad.arguments import count_of, non_negative_number, real_number
from hushgrad.errors import InvalidArgumentError

ADD_REMOVE_ONE = "add/remove-one"
ZERO_OUT = "zero-out"
REPLACE_ONE = "replace-one"

JSON: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Gaussian:
    """One release of a clipped sum over all records, with Gaussian noise.

    `noise_multiplier` (no unit): standard deviation of the noise over the clip norm; 0 is allowed and not private.
    """

    noise_multiplier: float

    type: ClassVar[str] = "gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ADD_REMOVE_ONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))

    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        return _to_json(self)


@dataclass(frozen=True, slots=True)
class PoissonSampled:
    """One release of a clipped, noised sum over records drawn independently with probability `sampling_rate`.

    `sampling_rate` (no unit) lies in [0, 1]; `noise_multiplier` is that of `Gaussian`.
    """

    sampling_rate: float
    noise_multiplier: float

    type: ClassVar[str] = "poisson_sampled_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ADD_REMOVE_ONE

    def __post_init__(self) -> None:
        rate = real_number("sampling_rate", self.sampling_rate)
        if not 0 <= rate <= 1:
            raise InvalidArgumentError(f"sampling_rate must be in [0, 1], got {rate}")
        object.__setattr__(self, "sampling_rate", rate)
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))

    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        return _to_json(self)


@dataclass(frozen=True, slots=True)
class DisjointPass:
    """One release inside a pass over disjoint batches, charged without amplification by sampling.

    A record takes part in at most one step of each pass (`pass_index`), so the steps of one pass together cost a given
    record one `Gaussian` event, that with the pass's smallest noise multiplier. Under add/remove-one the absence of a
    record would shift every later batch; hence zero-out.
    """

    noise_multiplier: float
    pass_index: int

    type: ClassVar[str] = "disjoint_pass_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ZERO_OUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        object.__setattr__(self, "pass_index", count_of("pass_index", self.pass_index, minimum=0))

    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        return _to_json(self)


@dataclass(frozen=True, slots=True)
class TruncatedPoisson:
    """As `PoissonSampled`, of which a uniformly random `max_batch_size` records are kept where more were drawn.

    `population`: the number of records, a public constant that neighbours differ from by at most one.
    """

    sampling_rate: float
    noise_multiplier: float
    population: int
    max_batch_size: int

    type: ClassVar[str] = "truncated_poisson_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ADD_REMOVE_ONE

    def __post_init__(self) -> None:
        plain = PoissonSampled(self.sampling_rate, self.noise_multiplier)
        object.__setattr__(self, "sampling_rate", plain.sampling_rate)
        object.__setattr__(self, "noise_multiplier", plain.noise_multiplier)
        object.__setattr__(self, "population", count_of("population", self.population, minimum=1))
        object.__setattr__(self, "max_batch_size", count_of("max_batch_size", self.max_batch_size, minimum=1))

    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        return _to_json(self)


@dataclass(frozen=True, slots=True)
class FixedSizeSampled:
    """One release of a clipped, noised sum over exactly `batch_size` of `population` records, without replacement.

    All subsets of that size are equally likely, anew in every step. `noise_multiplier` is over the clip norm, although
    replacing a record changes the sum by up to twice that; the accountants see to it.
    """

    batch_size: int
    population: int
    noise_multiplier: float

    type: ClassVar[str] = "fixed_size_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = REPLACE_ONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "population", count_of("population", self.population, minimum=1))
        object.__setattr__(self, "batch_size", count_of("batch_size", self.batch_size, minimum=1))
        if self.batch_size > self.population:
            raise InvalidArgumentError(
                f"batch_size must be at most population = {self.population}, got {self.batch_size}"
            )
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))

    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        return _to_json(self)


@dataclass(frozen=True, slots=True)
class BallsInBins:
    """One release of a pass in which every record was put into one of `bins` batches, independently and uniformly.

    Charged without amplification, as `DisjointPass`: that is true, and known to be more than needed. The amplification
    (Chua et al., 2024, arXiv:2412.16802; Choquette-Choo et al., 2024, arXiv:2410.06266) has no closed form; estimates
    by simulation hold with a stated confidence only, and an ε here is one that holds.
    """

    bins: int
    noise_multiplier: float
    pass_index: int

    type: ClassVar[str] = "balls_in_bins_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ZERO_OUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "bins", count_of("bins", self.bins, minimum=1))
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        object.__setattr__(self, "pass_index", count_of("pass_index", self.pass_index, minimum=0))

    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        return _to_json(self)


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


def _to_json(event: Event) -> JSON:
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return {"type": event.type, "version": event.version, **values}


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
