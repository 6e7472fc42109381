"""How far this user's ledgers went on this machine: what shows that a file is an older copy, or was continued twice.

A ledger file proves that nothing in it was changed, not that it is the latest. So each run leaves one small file
beside the user's other state, named after its run id: the last record that was written, and where. It is read when a
ledger is opened or read, locked while one is open, and overwritten after every record. What was written on another
machine, by another user or where this is switched off is not known here; an anchor kept elsewhere shows that.

`HUSHGRAD_STATE` names another folder, or is "off".
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from hushgrad.accounting.ledger.file import Held
from hushgrad.accounting.ledger.records import LedgerHead
from hushgrad.errors import LedgerError
from hushgrad.printable import printable

VARIABLE, OFF = "HUSHGRAD_STATE", "off"

_RUN = re.compile(r"[0-9a-f]{32}")
_MOST_BYTES = 1 << 16
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WHERE = "the ledger"
_CURE = (
    "Continue the file that holds that record. Where it is gone, what was trained since is not accounted for: begin a "
    f"new ledger for a new run; with {VARIABLE}={OFF} this file is continued, and every guarantee says that it may be "
    "an older copy"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """The last record that this machine saw of a run's ledger, and the path that it was written to."""

    head: LedgerHead
    path: str


def history_folder() -> Path | None:
    """Return where the files lie: HUSHGRAD_STATE, or the user's state folder; None where it is off or there is none."""
    named = os.environ.get(VARIABLE)
    if named:
        return None if named == OFF else Path(named).absolute()
    state = os.environ.get("XDG_STATE_HOME")
    if state:
        return Path(state).absolute() / "hushgrad" / "ledgers"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ".local" / "state" / "hushgrad" / "ledgers" if home.is_absolute() else None


def last_seen(run: str) -> Seen | None:
    """Return how far this machine saw the ledger of `run` go; None where it has not, or cannot tell."""
    path = _file_of(run)
    if path is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError:
        return None
    try:
        return _read(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def is_behind(data: bytes, seen: Seen | None) -> bool:
    """Return whether a verified ledger lacks the last record that was seen of its run."""
    if seen is None:
        return False
    lines = data.split(b"\n")
    if not 0 <= seen.head.seq < len(lines) - 1:
        return True
    return bool(json.loads(lines[seen.head.seq])["hash"] != seen.head.hash)


def without_unfinished(data: bytes) -> bytes:
    """Return the content of a ledger without a last line that a process was killed in.

    Guarantee: only where this machine saw the record before it as the last one: the line was never whole, so nothing
    was released for it. Elsewhere the file may have been cut off, and is returned as it is.
    """
    whole, newline, tail = data.rpartition(b"\n")
    if not newline or not tail.startswith(b"{") or b"\0" in tail:
        return data
    lines = whole.split(b"\n")
    try:
        run, last = json.loads(lines[0])["run"], json.loads(lines[-1])
        head = LedgerHead(last["seq"], last["hash"])
        seen = last_seen(run)
    except (ValueError, KeyError, TypeError, RecursionError):  # damaged, which the verification says
        return data
    return whole + newline if seen is not None and seen.head == head else data


class History:
    """The file of one run while its ledger is open for writing."""

    def __init__(self, held: Held | None, path: Path) -> None:
        self._held = held
        self._path = str(path)
        self._written = 0
        self.is_kept = held is not None
        """Whether this machine keeps how far the ledger goes; also after `close`."""

    @classmethod
    def open(cls, run: str, path: Path, content: bytes | None) -> History:
        """Open and lock the file of `run`, whose ledger at `path` has this verified content; None for a new ledger.

        Guarantee: a ledger that lacks the last record that this machine saw of its run is refused, as is one whose run
        goes on in another file at the moment.

        Raises `LedgerError`. Where nothing can be kept, the result says so.
        """
        file = _file_of(run)
        held = None
        try:
            if file is not None:
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                held = Held(file, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
                held.lock()
                if content is not None:
                    _require_latest(content, _read(held.descriptor))
            history = cls(held, path)
        except BaseException as error:
            if held is not None:
                held.close()
            if isinstance(error, BlockingIOError):
                raise LedgerError(
                    "another copy of it is in use by a writer: continued twice, each copy would count a part of the "
                    "steps",
                    where=_WHERE,
                    cure="Wait for that writer, and continue the file that it writes to",
                ) from None
            if isinstance(error, OSError) and error.errno is not None:  # else a signal's handler raised it
                return cls(None, path)
            raise
        return history

    def keep(self, head: LedgerHead) -> None:
        """Keep `head` as the last record. What cannot be written any more is given up, as `is_kept` then says."""
        if self._held is None or not self._held.is_mine:
            return
        text = json.dumps({"seq": head.seq, "hash": head.hash, "path": self._path}).encode()
        content = text.ljust(self._written) + b"\n"
        try:
            os.pwrite(self._held.descriptor, content, 0)
            self._written = len(content) - 1
        except OSError as error:
            if error.errno is None:
                raise  # it is a signal's handler's
            self.is_kept = False
            self.close()

    def close(self) -> None:
        """Unlock and close; again is harmless."""
        if self._held is not None:
            self._held.close()
            self._held = None


def _require_latest(content: bytes, seen: Seen | None) -> None:
    if seen is not None and is_behind(content, seen):
        raise LedgerError(
            f"it lacks record {seen.head.seq} (hash {seen.head.hash[:12]}…), which this machine wrote to the ledger of "
            f"this run at {printable(seen.path, 300)}: it is an older copy, or a copy was continued. Steps would be "
            f"forgotten, and epsilon would come out too small",
            where=_WHERE,
            cure=_CURE,
        )


def _file_of(run: str) -> Path | None:
    folder = history_folder()
    return folder / f"{run}.json" if folder is not None and _RUN.fullmatch(run) else None


def _read(descriptor: int) -> Seen | None:
    """Return what a file says; None for one that is empty or was torn, as a machine that stopped may leave it."""
    try:
        said = json.loads(os.pread(descriptor, _MOST_BYTES, 0))
        seq, digest, path = said["seq"], said["hash"], said["path"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    whole = type(seq) is int and isinstance(digest, str) and isinstance(path, str)
    return Seen(LedgerHead(seq, digest), path) if whole else None
