"""An older copy of a ledger, and a second continued copy, are found where this machine wrote the later records."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from hushgrad.accounting import Contract, Gaussian, Ledger, read_ledger
from hushgrad.accounting.conditions import OLDER_COPY
from hushgrad.accounting.ledger.history import VARIABLE, history_folder, last_seen
from hushgrad.errors import LedgerError

CONTRACT = Contract(sampling="observed", noise_source="operating system")
STEP = Gaussian(2.0)


def charged(path: Path, steps: int = 1) -> Ledger:
    ledger = Ledger(path, contract=CONTRACT)
    for _ in range(steps):
        ledger.charge(STEP)
    return ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def test_a_ledger_that_is_continued_where_it_lies_or_was_moved_to_is_accepted(path: Path, tmp_path: Path) -> None:
    charged(path).close()
    charged(path).close()
    moved = path.rename(tmp_path / "moved.jsonl")
    charged(moved).close()
    shutil.copy(moved, path)
    with charged(path) as ledger:
        assert ledger.is_watched
        assert ledger.steps == 4
    assert read_ledger(path).conditions == ()


def test_an_older_copy_is_refused_and_a_reader_says_that_it_is_one(path: Path, tmp_path: Path) -> None:
    """Guarantee: a ledger that lacks the last record that this machine saw of its run is refused."""
    charged(path).close()
    old = Path(shutil.copy(path, tmp_path / "old.jsonl"))
    charged(path, 3).close()
    with pytest.raises(LedgerError, match=r"it lacks record .* older copy, or a copy was continued"):
        charged(old)
    shutil.copy(old, path)  # rolled back in its place
    with pytest.raises(LedgerError, match="HUSHGRAD_STATE=off"):
        charged(path)
    view = read_ledger(path)
    assert view.is_behind
    assert view.conditions == (OLDER_COPY,)


def test_a_copy_taken_while_steps_run_is_refused_after_the_writer_was_killed(path: Path, tmp_path: Path) -> None:
    ledger = charged(path, 2)
    old = Path(shutil.copy(path, tmp_path / "old.jsonl"))
    ledger.charge(STEP)
    ledger._release_file()  # no record is written at this end
    with pytest.raises(LedgerError, match="it lacks record"):
        charged(old)


def test_two_copies_cannot_be_continued_one_after_the_other_or_at_once(path: Path, tmp_path: Path) -> None:
    """Guarantee: a ledger that lacks the last record that this machine saw of its run is refused, as is one whose run
    goes on in another file at the moment.
    """
    charged(path).close()
    copy = Path(shutil.copy(path, tmp_path / "copy.jsonl"))
    with charged(path), pytest.raises(LedgerError, match="another copy of it is in use by a writer"):
        charged(copy)
    with pytest.raises(LedgerError, match="it lacks record"):
        charged(copy)
    charged(path).close()


def test_a_refusal_leaves_nothing_behind(path: Path, tmp_path: Path) -> None:
    charged(path).close()
    old = Path(shutil.copy(path, tmp_path / "old.jsonl"))
    charged(path).close()
    before = old.read_bytes()
    for _ in range(2):
        with pytest.raises(LedgerError):
            charged(old)
    assert old.read_bytes() == before
    assert charged(path).steps == 3


def test_reading_while_a_writer_goes_on_is_no_older_copy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hushgrad.accounting.ledger import view as module

    ledger = charged(path)
    read = module.read_bytes

    def read_and_go_on(at: Path) -> bytes:
        content = read(at)
        ledger.charge(STEP)  # between reading the file and reading how far it went
        return content

    monkeypatch.setattr(module, "read_bytes", read_and_go_on)
    assert not read_ledger(path).is_behind


@pytest.mark.parametrize("state", ["off", "a file", "nowhere to write"])
def test_where_nothing_can_be_kept_training_goes_on_and_says_so(
    state: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    monkeypatch.setenv(VARIABLE, {"off": "off", "a file": str(taken), "nowhere to write": "/proc/1/none"}[state])
    charged(path).close()
    old = Path(shutil.copy(path, tmp_path / "old.jsonl"))
    charged(path).close()
    with charged(old) as ledger:
        assert not ledger.is_watched
    assert not read_ledger(old).is_behind


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"seq": "1", "hash": 2, "path": 3}', b"\xff\x00"])
def test_a_file_that_a_crash_tore_says_nothing_and_is_written_anew(damage: bytes, path: Path) -> None:
    with charged(path) as ledger:
        run = read_ledger(path).run
    folder = history_folder()
    assert folder is not None
    (folder / f"{run}.json").write_bytes(damage)
    assert last_seen(run) is None
    with charged(path) as ledger:
        seen = last_seen(run)
        assert seen is not None
        assert seen.head == ledger.anchor
        assert seen.path == str(path)


def test_only_its_owner_may_read_it_and_it_holds_no_more_than_the_end_and_the_path(path: Path) -> None:
    charged(path).close()
    folder = history_folder()
    assert folder is not None
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert set(json.loads(file.read_text())) == {"seq", "hash", "path"}


def test_a_forked_process_writes_nothing(path: Path) -> None:
    ledger = charged(path)
    run = read_ledger(path).run
    before = last_seen(run)
    child = os.fork()
    if child == 0:
        ledger._history.keep(ledger.anchor.__class__(99, "0" * 64))  # type: ignore[union-attr]
        ledger._history.close()  # type: ignore[union-attr]
        os._exit(0)
    os.waitpid(child, 0)
    assert last_seen(run) == before
    with pytest.raises(LedgerError, match="in use by another writer"):
        charged(path)


def test_the_folder_is_the_users_state_folder_unless_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_folder() == tmp_path / "hushgrad" / "ledgers"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_folder() == tmp_path / ".local" / "state" / "hushgrad" / "ledgers"
    monkeypatch.setenv(VARIABLE, "off")
    assert history_folder() is None


def killed_while_it_wrote(path: Path) -> tuple[bytes, bytes]:
    """Return what a ledger held before its last record, and that record; the machine saw the one before as the last."""
    ledger = charged(path, 2)
    before, seen = path.read_bytes(), (history_folder() / f"{ledger.run}.json").read_bytes()
    ledger.charge(STEP)
    ledger._release_file()
    (history_folder() / f"{ledger.run}.json").write_bytes(seen)
    return before, path.read_bytes()[len(before) :]


def test_a_line_that_a_process_was_killed_in_is_left_out_and_the_ledger_goes_on(path: Path) -> None:
    before, line = killed_while_it_wrote(path)
    for length in range(1, len(line)):
        path.write_bytes(before + line[:length])
        assert read_ledger(path).steps == 2, length
        assert path.read_bytes() == before + line[:length]  # a reader writes nothing
    with charged(path) as ledger:
        assert ledger.steps == 3
    assert path.read_bytes().startswith(before)
    assert read_ledger(path).steps == 3
    assert read_ledger(path).conditions == ()


def test_an_unfinished_line_is_refused_where_this_machine_knows_of_a_later_record_or_of_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: only where this machine saw the record before it as the last one: the line was never whole, so nothing
    was released for it.
    """
    before, line = killed_while_it_wrote(path)
    path.write_bytes(before + line)
    charged(path, 0).close()  # the machine has seen the record by now
    cut = before + line[:-1]
    path.write_bytes(cut)
    for read in (read_ledger, charged):
        with pytest.raises(LedgerError, match="incomplete"):
            read(path)
    before, line = killed_while_it_wrote(path.with_name("other.jsonl"))
    path.with_name("other.jsonl").write_bytes(before + line[:9])
    monkeypatch.setenv(VARIABLE, "off")
    for read in (read_ledger, charged):
        with pytest.raises(LedgerError, match="incomplete"):
            read(path.with_name("other.jsonl"))


def test_what_is_no_line_of_a_ledger_is_not_left_out(path: Path) -> None:
    before, _ = killed_while_it_wrote(path)
    for tail in (b"0", b"{\0", b"}"):
        path.write_bytes(before + tail)
        with pytest.raises(LedgerError, match="incomplete"):
            read_ledger(path)
