"""A stranger's kind of event: charged, read again, composed and told, with no line changed in hushgrad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest

from hushgrad.accounting import (
    ACCOUNTANTS,
    Contract,
    Event,
    Gaussian,
    Ledger,
    PoissonSampled,
    epsilon,
    guarantee,
    read_ledger,
    register_event,
)
from hushgrad.accounting.events import registry
from hushgrad.accounting.events.costs import Costs
from hushgrad.accounting.events.registry import event_from_json, event_to_json
from hushgrad.arguments import non_negative_number
from hushgrad.errors import InvalidArgumentError, LedgerError

CONTRACT = Contract("observed", "operating system")


@dataclass(frozen=True, slots=True)
class Broadcast(Event):
    """A Gaussian release of another name."""

    noise_multiplier: float
    station: str = "north"

    type: ClassVar[str] = "test_broadcast"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = "add/remove-one"

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))

    def add_to(self, costs: Costs, count: int) -> None:
        costs.add_release(self.noise_multiplier, count)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        return f"every record in {sum(count for _, count in ran)} broadcasts"


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kinds are a process's own: what a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))


@pytest.fixture
def registered(kinds: None) -> type[Broadcast]:
    return register_event(Broadcast)


def test_a_registered_kind_is_charged_and_read_back(registered: type[Broadcast], tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, contract=CONTRACT) as ledger:
        ledger.charge(PoissonSampled(0.1, 1.0), 5)
        ledger.charge(registered(2.0), 3)
        charged = ledger.events()
    with Ledger(path, contract=CONTRACT) as ledger:
        assert ledger.events() == charged == [(PoissonSampled(0.1, 1.0), 5), (Broadcast(2.0), 3)]
    assert read_ledger(path).events == charged


@pytest.mark.parametrize("accountant", sorted(ACCOUNTANTS))
def test_a_registered_kind_costs_what_it_adds(registered: type[Broadcast], accountant: str) -> None:
    sampled = (PoissonSampled(0.1, 1.0), 5)
    same = epsilon([sampled, (Gaussian(2.0), 3)], 1e-5, accountant)
    assert epsilon([sampled, (registered(2.0), 3)], 1e-5, accountant) == same > 0


def test_the_sentence_of_a_registered_kind_is_in_the_guarantee(registered: type[Broadcast]) -> None:
    said = guarantee([(registered(2.0), 3), (PoissonSampled(0.1, 1.0), 5), (registered(3.0), 1)], 1e-5)
    assert said.sampling == (
        "Poisson, every record independently with rate 0.1 in every step; every record in 4 broadcasts"
    )
    assert said.sampling in str(said)


def test_a_kind_that_is_not_registered_is_refused_before_it_is_charged(tmp_path: Path) -> None:
    """Guarantee: an event that could not be read again is refused before it is written."""
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, contract=CONTRACT) as ledger:
        with pytest.raises(InvalidArgumentError, match=r"Broadcast: .*not registered.*register_event"):
            ledger.charge(Broadcast(1.0))
        assert (ledger.events(), ledger.steps, ledger.is_open) == ([], 0, True)
        ledger.charge(Gaussian(1.0))
    assert read_ledger(path).events == [(Gaussian(1.0), 1)]


@pytest.mark.parametrize("value", [("north",), ["north"], np.float64(1.0), float("nan"), float("inf")])
def test_a_value_that_json_would_change_is_refused_before_it_is_charged(
    registered: type[Broadcast], value: Any
) -> None:
    """Guarantee: an event that could not be read again is refused before it is written."""
    with pytest.raises(InvalidArgumentError, match=r"plain, finite numbers and text.*station"):
        event_to_json(registered(1.0, value))


def test_a_ledger_with_an_unknown_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(registry, "_KINDS", dict(registry._KINDS))
        with Ledger(path, contract=CONTRACT) as ledger:
            ledger.charge(register_event(Broadcast)(1.0))
    with pytest.raises(LedgerError, match=r"type or version is unknown.*register_event"):
        read_ledger(path)


def test_a_type_and_version_that_are_taken_are_refused(registered: type[Broadcast]) -> None:
    """Guarantee: a type and version that are taken are refused."""

    @dataclass(frozen=True, slots=True)
    class Cheaper(Broadcast):
        def add_to(self, costs: Costs, count: int) -> None:
            """Nothing."""

    @dataclass(frozen=True, slots=True)
    class Impostor(Gaussian):
        def add_to(self, costs: Costs, count: int) -> None:
            """Nothing."""

    for kind in (registered, Cheaper, Impostor):
        with pytest.raises(InvalidArgumentError, match=r"registered already.*new version"):
            register_event(kind)
    assert type(event_from_json(Gaussian(1.0).to_json())) is Gaussian
    assert type(event_from_json(Broadcast(1.0).to_json())) is Broadcast


def test_a_new_version_of_a_kind_stands_beside_the_old_one(registered: type[Broadcast]) -> None:
    @register_event
    @dataclass(frozen=True, slots=True)
    class Broadcast2(Broadcast):
        version: ClassVar[int] = 2

    for event in (Broadcast(1.0), Broadcast2(1.0)):
        assert type(event_from_json(event_to_json(event))) is type(event)


def _not_frozen() -> type[Event]:
    @dataclass
    class Kind(Broadcast.__base__):  # type: ignore[name-defined,misc]
        noise_multiplier: float
        type, version, adjacency = "test_kind", 1, "zero-out"
        add_to, sentence = Broadcast.add_to, Broadcast.sentence

    return Kind


def _undecorated() -> type[Event]:
    class Kind(Broadcast):
        type = "test_kind"

    return Kind


def _changed(**changes: Any) -> type[Event]:
    return dataclass(frozen=True)(type("Kind", (Broadcast,), {"type": "test_kind", **changes}))


def _without_noise() -> type[Event]:
    class Kind(Event):
        type, version, adjacency = "test_kind", 1, "zero-out"

        def add_to(self, costs: Costs, count: int) -> None:
            """Nothing."""

    return dataclass(frozen=True)(Kind)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (_not_frozen(), "frozen dataclass"),
        (_undecorated(), "frozen dataclass"),
        (_without_noise(), r"the field noise_multiplier; it must define sentence"),
        (_changed(type="two words"), "its type must be a name"),
        (_changed(version=0), "its version must be"),
        (_changed(version=True), "its version must be"),
        (_changed(adjacency="neighbours"), "its adjacency must be one of add/remove-one, zero-out, replace-one"),
        (_changed(to_json=lambda self: {}), "remove its to_json"),
        (_changed(count=1, __annotations__={"count": "int"}), r"other names than \['count'\]"),
        (int, "subclass of Event"),
        (Broadcast(1.0), "subclass of Event"),
    ],
)
def test_what_could_not_be_read_again_is_not_registered(kind: Any, what: str, kinds: None) -> None:
    with pytest.raises(InvalidArgumentError, match=what):
        register_event(kind)


def test_a_kind_that_leaves_a_field_out_of_its_equality_is_refused(kinds: None) -> None:
    """Equal events are charged as one, with the fields of the first or of the last."""

    @dataclass(frozen=True)
    class Loose(Broadcast):
        noise_multiplier: float = field(compare=False)
        type = "test_loose"

    with pytest.raises(InvalidArgumentError, match="no field may be left out of that: noise_multiplier"):
        register_event(Loose)


def test_a_kind_cannot_say_itself_which_events_are_equal() -> None:
    with pytest.raises(InvalidArgumentError, match="Remove its __eq__"):
        type("Same", (Broadcast,), {"type": "test_same", "__eq__": lambda self, other: True})
    dataclass(frozen=True, slots=True)(type("Slotted", (Broadcast,), {"type": "test_slotted"}))


def test_a_registered_kind_is_named_in_every_guarantee(registered: type[Broadcast]) -> None:
    found = guarantee([(PoissonSampled(0.1, 1.0), 1)], 1e-5).conditions
    assert found == ()
    (condition,) = guarantee([(registered(1.0), 3)], 1e-5).conditions
    assert (condition.name, f"{registered.__module__}.{registered.__qualname__}" in condition.sentence) == (
        "third-party event",
        True,
    )


def test_a_ledger_whose_kind_refuses_what_it_once_wrote_is_refused_with_its_record(
    registered: type[Broadcast], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(tmp_path / "ledger", contract=CONTRACT) as ledger:
        ledger.charge(registered(2.0), 3)

    def stricter(self: Broadcast) -> None:
        raise ValueError("too large")

    monkeypatch.setattr(registered, "__post_init__", stricter)
    with pytest.raises(LedgerError, match=r"record 1 of the ledger: .*refuses what was written of it with ValueError"):
        read_ledger(tmp_path / "ledger")
