import copy
import json
import math
import multiprocessing
import os
import pickle
import resource
import stat
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hushgrad.accounting import (
    ACCOUNTANTS,
    Contract,
    DisjointPass,
    Gaussian,
    Ledger,
    PoissonSampled,
    epsilon,
    read_ledger,
)
from hushgrad.accounting.events.not_established import NotEstablished
from hushgrad.accounting.events.truncated_poisson import TruncatedPoisson
from hushgrad.accounting.ledger.contract import Rounding
from hushgrad.accounting.ledger.records import LedgerHead, encode
from hushgrad.accounting.ledger.view import view_when
from hushgrad.errors import (
    AccountingError,
    ContractChangedError,
    InvalidArgumentError,
    LedgerError,
    NotEstablishedError,
)

CONTRACT = Contract(
    "observed",
    "operating system",
    expected_batch_size=10,
    max_grad_norm=1.0,
    population=100,
    clipping="FlatClipping(max_grad_norm=1.0)",
)
STEP = PoissonSampled(0.1, 1.0)
TRUNCATED = TruncatedPoisson(0.1, 1.0, 100, 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def _small(path: Path) -> bytes:
    with Ledger(path, contract=CONTRACT) as ledger:
        for noise in (1.0, 1.0, 2.0):
            ledger.charge(PoissonSampled(0.1, noise))
    return path.read_bytes()


@pytest.mark.parametrize("durable", [False, True])
def test_a_ledger_says_what_was_charged_in_order(path: Path, durable: bool) -> None:
    ledger = Ledger(path if durable else None, contract=CONTRACT)
    assert (ledger.steps, ledger.events()) == (0, [])
    for noise in (1.0, 1.0, 2.0, 1.0):
        ledger.charge(PoissonSampled(0.1, noise))
    ledger.charge(PoissonSampled(0.1, 1.0), count=3)
    expected = [(PoissonSampled(0.1, 1.0), 2), (PoissonSampled(0.1, 2.0), 1), (PoissonSampled(0.1, 1.0), 4)]
    assert ledger.events() == expected
    assert ledger.steps == 7
    ledger.close()
    if durable:
        view = read_ledger(path)
        assert (view.events, view.steps, view.contract, view.anchor) == (expected, 7, CONTRACT, ledger.anchor)


def test_a_charge_is_in_the_file_when_charge_returns(path: Path) -> None:
    """Guarantee: `charge` returns after the charge is on disk."""
    with Ledger(path, contract=CONTRACT) as ledger:
        for step in range(1, 4):
            ledger.charge(STEP)
            assert read_ledger(path).steps == step


def test_every_charge_is_synchronised_before_charge_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: `charge` returns after the charge is on disk."""
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd))[1])
    with Ledger(path, contract=CONTRACT) as ledger:
        for _ in range(3):
            ledger.charge(STEP)
            assert synced[-1] == path.stat().st_size


def test_a_ledger_is_resumed_with_everything_it_holds(path: Path) -> None:
    for attempt in range(1, 4):
        with Ledger(path, contract=CONTRACT) as ledger:
            assert ledger.steps == attempt - 1
            ledger.charge(STEP)
    assert read_ledger(path).events == [(STEP, 3)]


def test_every_changed_byte_is_refused(path: Path) -> None:
    """Guarantee: a damaged or edited file is refused, naming the first bad record.

    Guarantee: a changed, missing, repeated or reordered byte anywhere before the end of the file is refused.
    """
    good = _small(path)
    for position in range(len(good)):
        for mask in (0x01, 0x20, 0x80):
            bad = bytearray(good)
            bad[position] ^= mask
            path.write_bytes(bad)
            with pytest.raises(LedgerError, match=r"record \d+") as caught:
                read_ledger(path)
            expected = good[:position].count(b"\n")
            assert f"record {expected} " in str(caught.value), position


def test_every_truncation_is_refused_by_itself_or_against_an_anchor(path: Path) -> None:
    good = _small(path)
    anchor = read_ledger(path).anchor
    for length in range(len(good)):
        path.write_bytes(good[:length])
        if length and good[length - 1 : length] == b"\n":
            assert read_ledger(path).steps < 3
        else:
            with pytest.raises(LedgerError, match=r"incomplete|empty"):
                read_ledger(path)
        with pytest.raises(LedgerError):
            read_ledger(path, anchor)
    path.write_bytes(good)
    assert read_ledger(path, anchor).steps == 3


@pytest.mark.parametrize("order", [[0, 2, 1, 3], [0, 1, 3], [0, 1, 1, 2, 3], [1, 2, 3], [0, 0, 1, 2, 3]])
def test_reordered_missing_and_repeated_records_are_refused(path: Path, order: list[int]) -> None:
    lines = _small(path).splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    first_bad = next((i for i, line in enumerate(order) if line != i), len(order))
    with pytest.raises(LedgerError, match=f"record {first_bad} "):
        read_ledger(path)


def test_a_damaged_ledger_is_not_resumed_and_not_touched(path: Path) -> None:
    good = _small(path)
    for bad in (good[:-5], good.replace(b'"noise_multiplier":2.0', b'"noise_multiplier":9.0'), b"", b"{}\n", b"\xff\n"):
        path.write_bytes(bad)
        with pytest.raises(LedgerError):
            Ledger(path, contract=CONTRACT)
        assert path.read_bytes() == bad


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b"1", b"null", b'{"seq":NaN}', b'{"seq":0,"seq":0}', b'{"a":1' * 50_000, b"\x00", b"9" * 9999],
)
def test_hostile_lines_are_refused(path: Path, line: bytes) -> None:
    path.write_bytes(line + b"\n")
    with pytest.raises(LedgerError, match="record 0"):
        read_ledger(path)


def test_unknown_kinds_and_events_are_refused_though_the_chain_is_right(path: Path) -> None:
    from hushgrad.accounting.ledger.records import encode

    for kind, body in [
        ("refund", {"event": STEP.to_json(), "count": 1}),
        ("charge", {"event": {"type": "laplace", "version": 1}, "count": 1}),
        ("charge", {"event": STEP.to_json(), "count": -1}),
        ("charge", {"event": DisjointPass(1.0, 0).to_json(), "count": 1}),
        ("charge", {}),
    ]:
        path.unlink(missing_ok=True)
        _small(path)
        anchor = read_ledger(path).anchor
        with path.open("ab") as file:
            file.write(encode(kind, anchor.seq + 1, anchor.hash, body)[0])
        with pytest.raises(LedgerError, match="record 4 "):
            read_ledger(path)


def test_a_second_writer_is_refused_and_a_reader_is_not(path: Path) -> None:
    """Guarantee: a second writer is refused."""
    with Ledger(path, contract=CONTRACT) as ledger:
        ledger.charge(STEP)
        with pytest.raises(LedgerError, match="another writer"):
            Ledger(path, contract=CONTRACT)
        code = "import sys, pathlib, hushgrad.accounting.ledger.file as f; f.LedgerFile.open(pathlib.Path(sys.argv[1]))"
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
        assert "another writer" in other.stderr
        assert read_ledger(path).steps == 1
        ledger.charge(STEP)
    Ledger(path, contract=CONTRACT).close()


def _charge_in_child(ledger: Ledger, queue: "multiprocessing.Queue[str]") -> None:
    try:
        ledger.charge(STEP)
        queue.put("charged")
    except LedgerError as error:
        queue.put(str(error))


def test_a_forked_process_cannot_charge_and_does_not_keep_the_lock(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ledger = Ledger(path, contract=CONTRACT)
    queue = context.Queue()
    child = context.Process(target=_charge_in_child, args=(ledger, queue))
    child.start()
    assert "forked process" in queue.get(timeout=30)
    child.join()
    ledger.charge(STEP)
    ledger.close()
    assert read_ledger(path).steps == 1


def test_a_forked_process_with_its_parents_id_can_neither_charge_nor_unlock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process 1 of a container may fork into a namespace of its own, where its child is process 1, too."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    ledger = Ledger(path, contract=CONTRACT)
    child = os.fork()
    if child == 0:
        try:
            ledger.charge(STEP)
        except LedgerError:
            ledger.close()
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with pytest.raises(LedgerError, match="in use by another writer"):
        Ledger(path, contract=CONTRACT)
    ledger.charge(STEP)
    ledger.close()
    assert read_ledger(path).steps == 1


CHANGES = {
    "sampling": "declared by the caller",
    "noise_source": "fixed key: NOT PRIVATE",
    "expected_batch_size": 11,
    "max_grad_norm": 2.0,
    "loss_reduction": "sum",
    "population": 101,
    "clipping": "PerLayer(limits=(0.6, 0.8))",
    "unit": "one user",
    "strategy": "BandedStrategy of 2 bands",
    "rounding": Rounding(grid=2.0**-31, error=1e-4, distance=1e-20),
    "sparse_rows": "SparseRows(tables=['users.weight'], threshold=3.0)",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_contract_is_refused_naming_the_field(path: Path, name: str) -> None:
    """Guarantee: a changed contract is refused."""
    _small(path)
    facts = {field: getattr(CONTRACT, field) for field in Contract.__slots__}
    assert set(facts) == set(CHANGES)
    with pytest.raises(ContractChangedError, match=name):
        Ledger(path, contract=Contract(**{**facts, name: CHANGES[name]}))


@pytest.mark.parametrize(
    "facts",
    [
        {"sampling": "perhaps"},
        {"noise_source": "torch.randn"},
        {"expected_batch_size": 0},
        {"max_grad_norm": float("inf")},
        {"loss_reduction": "none"},
        {"population": 1.5},
        {"clipping": ""},
        {"clipping": 1.0},
        {"clipping": "FlatClipping(\x1b[31m)"},
        {"unit": None},
        {"unit": "one\nrecord"},
        {"rounding": 0.5},
        {"rounding": {"grid": 0.0, "error": 1e-4, "distance": 1e-20}},
    ],
)
def test_a_contract_with_values_out_of_range_is_refused(facts: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidArgumentError):
        Contract(**{"sampling": "observed", "noise_source": "operating system", **facts})


def test_one_ledger_holds_one_neighbouring_relation() -> None:
    ledger = Ledger(contract=CONTRACT)
    ledger.charge(Gaussian(1.0))
    with pytest.raises(AccountingError):
        ledger.charge(DisjointPass(1.0, 0))
    assert ledger.events() == [(Gaussian(1.0), 1)]
    ledger.charge(STEP)


def test_nothing_lowers_what_was_charged() -> None:
    """Guarantee: nothing lowers what was charged."""
    ledger = Ledger(contract=CONTRACT)
    ledger.charge(STEP)
    ledger.events().clear()
    for count in (0, -1, 1.0, True):
        with pytest.raises(InvalidArgumentError, match="count"):
            ledger.charge(STEP, count=count)  # type: ignore[arg-type]
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.charge(STEP)
    assert (ledger.steps, ledger.events()) == (1, [(STEP, 1)])


def test_a_ledger_cannot_be_copied() -> None:
    ledger = Ledger(contract=CONTRACT)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="two copies"):
            attempt(ledger)


def test_a_full_disk_is_an_error_before_noise_and_leaves_a_valid_file(path: Path) -> None:
    """Guarantee: on a full disk `LedgerError` is raised, and a half-written line is cut off again."""
    ledger = Ledger(path, contract=CONTRACT)
    ledger.charge(STEP)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(LedgerError, match="no noise was drawn"):
            ledger.charge(STEP)
        with pytest.raises(LedgerError, match="in doubt"):
            ledger.charge(STEP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(LedgerError, match="in doubt"):
        ledger.charge(STEP)
    assert ledger.steps == 2  # never less than the file
    ledger.close()
    assert read_ledger(path).steps == 1
    with Ledger(path, contract=CONTRACT) as again:
        again.charge(STEP)
    assert read_ledger(path).steps == 2


@pytest.mark.parametrize("is_full", [False, True])
def test_a_finding_makes_every_epsilon_of_the_ledger_infinite(path: Path, is_full: bool) -> None:
    """Guarantee: from here on every ε of this ledger is infinite, in this object also where the disk refuses."""
    found = NotEstablished(code="DP301", place="layers.3", what="the output of one example depends on the others")
    ledger = Ledger(path, contract=CONTRACT)
    ledger.charge(STEP)
    assert all(0 < epsilon(ledger.events(), 1e-5, accountant) < math.inf for accountant in ACCOUNTANTS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if is_full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(LedgerError, match="could not be made to hold") if is_full else nullcontext():
            ledger.end(found)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for _ in range(2):
        assert all(epsilon(ledger.events(), 1e-5, accountant) == math.inf for accountant in ACCOUNTANTS)
        with pytest.raises(NotEstablishedError):
            ledger.require_established()
        with pytest.raises((NotEstablishedError, LedgerError)):
            ledger.charge(STEP)
    assert ledger.steps == 1
    ledger.close()
    held = epsilon(read_ledger(path).events, 1e-5)
    assert held < math.inf if is_full else held == math.inf


def test_a_disk_that_is_full_at_the_start_leaves_nothing_behind(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(LedgerError):
            Ledger(path, contract=CONTRACT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()
    Ledger(path, contract=CONTRACT).close()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(5, "I/O error")])
def test_a_charge_that_was_interrupted_counts_and_stops_the_ledger(
    path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    ledger = Ledger(path, contract=CONTRACT)

    def interrupted(_: int) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises((KeyboardInterrupt, LedgerError)):
            ledger.charge(STEP)
    with pytest.raises(LedgerError, match="in doubt"):
        ledger.charge(STEP)
    ledger.close()
    assert read_ledger(path).steps <= ledger.steps == 1


def test_a_ledger_that_was_changed_under_its_writer_takes_no_charge(path: Path) -> None:
    def append(_: Path) -> None:
        with path.open("ab") as file:
            file.write(b"x")

    def cut(_: Path) -> None:
        os.truncate(path, 10)

    def remove(_: Path) -> None:
        path.unlink()

    def replace(_: Path) -> None:
        copied = path.with_suffix(".copy")
        copied.write_bytes(path.read_bytes())
        copied.replace(path)

    for change in (append, cut, remove, replace):
        path.unlink(missing_ok=True)
        with Ledger(path, contract=CONTRACT) as ledger:
            ledger.charge(STEP)
            change(path)
            with pytest.raises(LedgerError):
                ledger.charge(STEP)


def test_the_file_is_private_and_links_are_refused(path: Path) -> None:
    _small(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    link = path.with_name("link")
    link.symlink_to(path)
    for attempt in (lambda: Ledger(link, contract=CONTRACT), lambda: read_ledger(link)):
        with pytest.raises(LedgerError, match="cannot be opened"):
            attempt()
    with pytest.raises(LedgerError):
        Ledger(path.parent, contract=CONTRACT)
    missing = path.parent / "missing" / "ledger"
    for attempt in (lambda: Ledger(missing, contract=CONTRACT), lambda: read_ledger(missing)):
        with pytest.raises(LedgerError, match="No such file") as caught:
            attempt()
        assert caught.value.where == f"the ledger '{missing}'"


def test_the_anchor_of_another_run_is_refused(path: Path) -> None:
    _small(path)
    with pytest.raises(LedgerError, match="another run"):
        read_ledger(path, LedgerHead(1, "0" * 64))


def test_every_line_is_one_json_object_with_its_kind(path: Path) -> None:
    records = [json.loads(line) for line in _small(path).splitlines()]
    assert [record["kind"] for record in records] == ["header", "charge", "charge", "charge"]
    assert [record["seq"] for record in records] == [0, 1, 2, 3]
    assert records[0]["format"] == 2
    assert records[2]["previous"] == records[1]["hash"]


def test_a_note_changes_no_event_and_no_number_of_steps_and_is_in_the_chain(path: Path) -> None:
    with Ledger(path, contract=CONTRACT) as ledger:
        ledger.charge(STEP, 2)
        ledger.note("noise monitor", {"steps_watched": 2, "standard_errors": -0.5, "verdict": "as charged"})
        ledger.charge(STEP, 1)
        assert (ledger.steps, ledger.events()) == (3, [(STEP, 3)])
    view = read_ledger(path)
    assert (view.steps, view.events) == (3, [(STEP, 3)])
    (note,) = view.notes
    assert (note.about, note.steps, note.values["standard_errors"]) == ("noise monitor", 2, -0.5)
    path.write_text(path.read_text().replace('"standard_errors":-0.5', '"standard_errors":0.5'))
    with pytest.raises(LedgerError, match="record 2 of the ledger: it does not match its hash"):
        read_ledger(path)


def test_a_note_returns_what_is_left_of_a_lease(path: Path) -> None:
    with Ledger(path, contract=CONTRACT) as ledger:
        ledger.charge(STEP, lease=5)
        ledger.note("noise monitor", {"steps_watched": 1})
        assert read_ledger(path).steps == 1
        ledger.charge(STEP, lease=5)
        assert read_ledger(path).steps == 6
    assert read_ledger(path).steps == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, None, [1]])
def test_a_note_holds_text_and_finite_numbers_only(path: Path, value: Any) -> None:
    with Ledger(path, contract=CONTRACT) as ledger:
        before = ledger.anchor
        with pytest.raises(LedgerError, match="text or a finite number"):
            ledger.note("noise monitor", {"value": value})
        assert ledger.anchor == before
        ledger.charge(STEP)


def test_a_note_of_another_version_is_refused(path: Path) -> None:
    with Ledger(path, contract=CONTRACT) as ledger:
        anchor = ledger.anchor
    with path.open("ab") as file:
        body = {"version": 2, "about": "noise monitor", "values": {}}
        file.write(encode("note", anchor.seq + 1, anchor.hash, body)[0])
    with pytest.raises(LedgerError, match="note of version 1"):
        read_ledger(path)


def test_a_closed_ledger_takes_no_note() -> None:
    ledger = Ledger(contract=CONTRACT)
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.note("noise monitor", {})


def test_a_program_that_changes_its_folder_keeps_its_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Ledger("ledger.jsonl", contract=CONTRACT) as ledger:
        ledger.charge(STEP)
        monkeypatch.chdir(tmp_path / "elsewhere")
        ledger.charge(STEP)
    assert read_ledger(tmp_path / "ledger.jsonl").steps == 2
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_is_no_ordinary_file_is_refused_and_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/null")):
        with pytest.raises(LedgerError, match="not an ordinary file"):
            read_ledger(path)
        with pytest.raises(LedgerError):
            Ledger(path, contract=CONTRACT)
    for use in (read_ledger, lambda path: Ledger(path, contract=CONTRACT)):
        with pytest.raises(LedgerError, match="null character"):
            use(f"{tmp_path}/a\0b")


@pytest.mark.parametrize(
    ("contract", "charge"),
    [
        ({"population": 10**30}, {}),
        ({"population": 10**400}, {}),
        ({"expected_batch_size": 10**400}, {}),
        ({"max_grad_norm": 10**400}, {}),
        ({}, {"count": 10**400}),
        ({}, {"count": 2**53 + 1}),
        ({}, {"event": {**STEP.to_json(), "noise_multiplier": 10**400}}),
        ({}, {"event": {**STEP.to_json(), "sampling_rate": 10**400}}),
        ({}, {"event": {**TRUNCATED.to_json(), "population": 10**30}}),
        ({}, {"event": {**TRUNCATED.to_json(), "max_batch_size": 10**400}}),
        ({}, {"event": {**DisjointPass(1.0, 0).to_json(), "pass_index": 10**400}}),
    ],
)
def test_numbers_that_no_run_can_have_are_refused_with_right_hashes(path: Path, contract: Any, charge: Any) -> None:
    first, header = encode("header", 0, "0" * 64, {"format": 2, "run": "x", "contract": asdict(CONTRACT) | contract})
    second, _ = encode("charge", 1, header, {"event": STEP.to_json(), "count": 1} | charge)
    path.write_bytes(first + second)
    with pytest.raises(LedgerError, match="cannot be understood"):
        read_ledger(path)


def test_a_number_of_five_thousand_digits_is_refused(path: Path) -> None:
    line = _small(path).splitlines(keepends=True)[-1]
    path.write_bytes(_small(path).replace(line, line.replace(b'"count":1', b'"count":' + b"1" * 5000)))
    with pytest.raises(LedgerError, match="record 3"):
        read_ledger(path)


def test_an_interrupted_charge_in_memory_counts_and_the_ledger_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(contract=CONTRACT)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hushgrad.accounting.ledger.ledger.encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ledger.charge(STEP)
    ledger.charge(STEP)
    assert ledger.steps == 2


def test_the_view_at_an_anchor_is_what_the_ledger_said_then_and_none_where_it_never_was(path: Path) -> None:
    with Ledger(path, contract=CONTRACT) as ledger:
        ledger.charge(STEP, 3)
        then = ledger.anchor
        ledger.charge(PoissonSampled(0.1, 2.0), 4)
        last = ledger.anchor
    view = view_when(path, then)
    assert view is not None
    assert (view.steps, view.events, view.anchor) == (3, [(STEP, 3)], then)
    assert view_when(path, last) is not None
    for never in (
        LedgerHead(then.seq, last.hash),
        LedgerHead(last.seq + 1, last.hash),
        LedgerHead(-1, "0" * 64),
        LedgerHead(10**30, ""),
    ):
        assert view_when(path, never) is None


def test_the_cure_for_a_damaged_ledger_warns_of_an_older_copy(path: Path) -> None:
    path.write_bytes(_small(path).replace(b'"noise_multiplier":2.0', b'"noise_multiplier":9.0'))
    with pytest.raises(LedgerError, match=r"holds every step since.*an older copy forgets steps"):
        read_ledger(path)
