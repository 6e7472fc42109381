"""Ledgers as they were first written, one line for each kind of event, byte for byte."""

from pathlib import Path

import pytest

from hushgrad.accounting import (
    BallsInBins,
    CyclicPoisson,
    DisjointPass,
    Event,
    FixedOrder,
    FixedOrderBuffered,
    FixedSizeSampled,
    Gaussian,
    PoissonSampled,
    RandomAllocation,
    TruncatedPoisson,
    read_ledger,
)
from hushgrad.accounting.events.not_established import NotEstablished
from hushgrad.accounting.events.registry import _KINDS, event_to_json
from hushgrad.accounting.events.release import Release, ReplacedRelease, ZeroedOutRelease
from hushgrad.accounting.events.renyi_filter import RenyiFilter
from hushgrad.accounting.ledger.records import decode, encode

WRITTEN = Path(__file__).parents[1] / "golden" / "ledgers"
EVENTS: dict[str, list[tuple[Event, int]]] = {
    "add-remove-one": [
        (PoissonSampled(0.01, 1.1), 20),
        (Gaussian(2), 3),
        (TruncatedPoisson(0.01, 1.1, 10000, 150), 7),
    ],
    "zero-out": [(DisjointPass(2, 3), 5), (BallsInBins(10, 0.75, 4), 10)],
    "blocks": [(CyclicPoisson(0.16, 1.1, 16, 0), 40), (CyclicPoisson(0.16, 1.1, 16, 1), 7)],
    "fixed-order": [
        (FixedOrder(2, 100, 0), 250),
        (FixedOrderBuffered(2, 100, "0x1.0p-1, 0x1.ep-1", "0x1.0p-3, 0x1.0p-2", 1), 120),
    ],
    "replace-one": [(FixedSizeSampled(64, 1000, 1.5), 3)],
    "not-established": [
        (PoissonSampled(0.01, 1.1), 20),
        (NotEstablished("DP301", "layers.3", "the output of one example depends on the others"), 1),
    ],
    "random-allocation": [(RandomAllocation(100, 0.8, 2), 100), (RandomAllocation(30, 1.5, 3, participations=4), 7)],
    "releases": [
        (Release(2.0, "the accuracy of a model, over 60 records", 6e-28), 1),
        (PoissonSampled(0.01, 1.1), 20),
    ],
    "releases-zero-out": [(DisjointPass(2, 0), 5), (ZeroedOutRelease(3.5, "a count of records, over 60 records"), 2)],
    "releases-replace-one": [(ReplacedRelease(3.5, "a count of records, over 60 records"), 1)],
    "fully-adaptive": [(RenyiFilter(3.0, 1e-5, 12), 1), (PoissonSampled(0.01, 1.1), 20)],
}


@pytest.mark.parametrize("relation", EVENTS)
def test_what_the_first_version_wrote_is_read(relation: str) -> None:
    assert read_ledger(WRITTEN / f"{relation}.jsonl").events == EVENTS[relation]


@pytest.mark.parametrize("relation", EVENTS)
def test_the_same_charges_are_written_with_the_same_bytes_and_hashes(relation: str) -> None:
    path = WRITTEN / f"{relation}.jsonl"
    header, *charges = path.read_bytes().splitlines(keepends=True)
    (first,) = decode(header)
    previous = first["hash"]
    for number, (line, (event, count)) in enumerate(zip(charges, EVENTS[relation], strict=True)):
        written, previous = encode("charge", number + 1, previous, {"event": event_to_json(event), "count": count})
        assert written == line


def test_there_is_a_line_of_each_kind() -> None:
    assert {type(event) for events in EVENTS.values() for event, _ in events} == set(_KINDS.values())
