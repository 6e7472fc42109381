import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.accounting import Contract, Ledger, PoissonSampled, read_ledger
from hushgrad.accounting.ledger.records import NO_HASH, decode, encode
from hushgrad.errors import LedgerError

CONTRACT = Contract("observed", "operating system")
STEP, OTHER = PoissonSampled(0.1, 1.0), PoissonSampled(0.1, 2.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def _records(path: Path) -> list[dict]:  # type: ignore[type-arg]
    return list(decode(path.read_bytes()))


def test_a_lease_is_on_disk_before_its_first_step_and_returned_when_closed(path: Path) -> None:
    """Guarantee: with leases, a crash leaves the file with at most lease − 1 steps more than were taken, never fewer.

    What a crash at that moment would leave is what another reader finds on disk.
    """
    with Ledger(path, contract=CONTRACT) as ledger:
        for taken in range(1, 8):
            ledger.charge(STEP, lease=5)
            on_disk = read_ledger(path).steps
            assert taken <= on_disk <= taken + 4
            assert ledger.steps == taken
            assert ledger.events() == [(STEP, taken)]
    assert read_ledger(path).events == [(STEP, 7)]
    assert [record["kind"] for record in _records(path)] == ["header", "charge", "charge", "returned"]


def test_another_event_returns_the_lease(path: Path) -> None:
    with Ledger(path, contract=CONTRACT) as ledger:
        for event in (STEP, STEP, OTHER, STEP):
            ledger.charge(event, lease=10)
    assert read_ledger(path).events == [(STEP, 2), (OTHER, 1), (STEP, 1)]


def test_what_a_crash_leaves_of_a_lease_stays_charged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSHGRAD_STATE", "off")  # this process lives on, and would know the copy for an older one
    ledger = Ledger(path, contract=CONTRACT)
    ledger.charge(STEP, lease=5)
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())  # as the disk was when the process died
    ledger.close()
    with Ledger(copy, contract=CONTRACT) as resumed:
        assert resumed.steps == 5
        resumed.charge(STEP, lease=5)
        assert resumed.steps == 6
    assert read_ledger(copy).steps == 6


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([STEP, OTHER]), st.integers(1, 3), st.integers(1, 6)), max_size=12),
    st.booleans(),
)
def test_leases_never_change_what_was_charged(tmp_path_factory, charges: list, crash: bool) -> None:  # type: ignore[no-untyped-def, type-arg]
    path = tmp_path_factory.mktemp("lease") / "ledger.jsonl"
    plain, leased = Ledger(contract=CONTRACT), Ledger(path, contract=CONTRACT)
    for event, count, lease in charges:
        plain.charge(event, count)
        leased.charge(event, count, lease=lease)
    assert leased.events() == plain.events()
    on_disk = read_ledger(path)
    assert plain.steps <= on_disk.steps <= plain.steps + 5
    leased.close()
    assert read_ledger(path).events == plain.events()


def test_a_forked_process_cannot_take_a_leased_step(path: Path) -> None:
    ledger = Ledger(path, contract=CONTRACT)
    ledger.charge(STEP, lease=5)
    child = os.fork()
    if child == 0:
        try:
            ledger.charge(STEP, lease=5)
        except LedgerError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    ledger.close()


def _rewritten(path: Path, bodies: list[dict]) -> None:  # type: ignore[type-arg]
    """Write records with a correct hash chain, as an editor of the file could."""
    lines, previous = [], NO_HASH
    for seq, body in enumerate(bodies):
        fields = {key: value for key, value in body.items() if key not in ("hash", "previous", "seq", "kind")}
        line, previous = encode(body["kind"], seq, previous, fields)
        lines.append(line)
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize("count", [1, 4, 5, 100])
@pytest.mark.parametrize("where", ["after a charge of one", "twice", "after the header", "of a whole lease"])
def test_a_return_of_what_was_not_leased_is_refused(path: Path, count: int, where: str) -> None:
    with Ledger(path, contract=CONTRACT) as ledger:
        ledger.charge(STEP, lease=5)
    header, lease, returned = _records(path)
    one = json.loads(json.dumps(lease)) | {"count": 1}
    again = returned | {"count": count}
    records = {
        "after a charge of one": [header, one, again],
        "twice": [header, lease, returned, again],
        "after the header": [header, again],
        "of a whole lease": [header, lease, returned | {"count": 4 + count}],
    }[where]
    _rewritten(path, records)
    with pytest.raises(LedgerError, match=f"record {len(records) - 1} "):
        read_ledger(path)
