"""The file of a ledger: one locked writer, which appends whole lines durably or says that it did not."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from hushgrad.errors import LedgerError
from hushgrad.printable import printable
from hushgrad.process import this_process
from hushgrad.system import fcntl

_WHERE = "the ledger"
_LONGEST_PATH = 400
_PATH = "Check that path, or choose another one"
_LOCAL = "Use a path on a local file system"
_ROOM = "Make room on the disk, and open the ledger again by its path"

# O_NONBLOCK: opening a named pipe must not wait for somebody at its other end. It changes nothing for ordinary files.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_APPEND = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def ledger_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a ledger: a program that changes its folder later keeps the same ledger.

    Raises `LedgerError` for what can be no path.
    """
    if "\0" in os.fsdecode(path):
        raise LedgerError("its path holds a null character", where=_WHERE, cure="Choose another path")
    return Path(path).absolute()


class Held:
    """An open file that may be locked. Only the process that opened it unlocks it.

    Guarantee: the lock ends with this object at the latest: what an interrupt took from its owner before it had a name
    is closed as it is collected.
    """

    def __init__(self, path: Path, flags: int, mode: int) -> None:
        # Closed by code that no handler of a signal comes between: by `close`, or as this object is collected.
        self._file = io.FileIO(path, "r+", opener=lambda name, _: os.open(name, flags, mode))
        self._owner = this_process()

    @property
    def descriptor(self) -> int:
        """That of the open file."""
        return self._file.fileno()

    @property
    def is_mine(self) -> bool:
        """Whether this process opened it."""
        return self._owner == this_process()

    def lock(self) -> None:
        """Lock it for this process alone. Raises `BlockingIOError` where somebody has it, and `OSError`."""
        fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Unlock and close; again is harmless. Forked processes that inherited the file do not keep the lock."""
        try:
            if not self._file.closed and self.is_mine:
                fcntl.flock(self._file.fileno(), fcntl.LOCK_UN)
        finally:
            self._file.close()


class LedgerFile:
    """An open ledger file with an exclusive lock. Only the process that opened it can append."""

    def __init__(self, path: Path, held: Held, created: bool, final: Path) -> None:
        self.path = path
        self.created = created
        self.final = final
        """The path that the ledger has once it is published."""
        self._held = held
        self._size = 0

    @classmethod
    def open(cls, path: Path) -> LedgerFile:
        """Open `path` and lock it, or create it (mode 0600) if it does not exist. A symbolic link is refused.

        A new file has another name until `publish`, so that a process killed in between leaves no ledger without a
        header.

        Raises `LedgerError` where that is impossible or another writer has it.
        """
        try:
            created = not os.path.lexists(path)
            at = path.with_name(f".{path.name}.{os.urandom(8).hex()}.new") if created else path
            held = Held(at, _APPEND | (os.O_CREAT | os.O_EXCL if created else 0), 0o600)
        except OSError as error:
            raise _failed("cannot be opened", error, _PATH, path) from None
        try:
            file = cls(at, held, created, path)
            file._lock()
            file._size = os.fstat(held.descriptor).st_size
            return file
        except BaseException:
            held.close()
            raise

    def publish(self) -> None:
        """Give a new file its name, and return when that is on disk.

        Raises `LedgerError` where another ledger has taken the name meanwhile.
        """
        try:
            os.link(self.path, self.final)  # unlike a rename, this never replaces a file
        except FileExistsError:
            raise LedgerError(
                "another writer created it just now", where=_WHERE, cure="Wait for that writer, or use another path"
            ) from None
        except OSError as error:
            raise _failed("cannot be created on this file system", error, _LOCAL) from None
        os.unlink(self.path)
        self.path = self.final
        _sync_folder(self.path)

    def _lock(self) -> None:
        _require_ordinary(self._held.descriptor)
        try:
            self._held.lock()
        except BlockingIOError:
            raise LedgerError(
                "it is in use by another writer",
                where=_WHERE,
                cure="Wait for that writer, close the session that writes it (engine.session.close()), or use another "
                "path",
            ) from None
        except OSError as error:
            raise _failed("cannot be locked on this file system", error, _LOCAL) from None

    def read(self) -> bytes:
        """Return the whole content."""
        content = bytearray()
        while chunk := os.pread(self._held.descriptor, 1 << 20, len(content)):
            content += chunk
        if len(content) != self._size:
            raise LedgerError(
                "it changed while it was read",
                where=_WHERE,
                cure="Stop the other program that writes to it, and open it again",
            )
        return bytes(content)

    def append(self, line: bytes) -> None:
        """Append `line` and return when it is on disk.

        Guarantee: on a full disk or any other failure `LedgerError` is raised, and a half-written line is cut off again
        where the system allows it; where it does not, the reader refuses the file.
        """
        self._check_untouched()
        try:
            written = os.write(self._held.descriptor, line)
            while written < len(line):
                written += os.write(self._held.descriptor, line[written:])
            os.fsync(self._held.descriptor)
        except OSError as error:
            self._cut_back()
            raise _failed("could not be extended, so no noise was drawn and no step was taken", error, _ROOM) from None
        self._size += len(line)

    def cut_to(self, size: int) -> None:
        """Cut off what lies behind `size` bytes: a line that was never whole. Raises `LedgerError` where that fails."""
        if size == self._size:
            return
        self._check_untouched()
        try:
            os.ftruncate(self._held.descriptor, size)
            os.fsync(self._held.descriptor)
        except OSError as error:
            raise _failed("ends in an unfinished line, which cannot be cut off", error, _ROOM) from None
        self._size = size

    def require_owner(self) -> None:
        """Refuse a forked process."""
        if not self._held.is_mine:
            raise LedgerError(
                "it belongs to the process that opened it, and a forked process cannot charge",
                where=_WHERE,
                cure="Open a ledger of its own in the process that trains",
            )

    def _check_untouched(self) -> None:
        self.require_owner()
        try:
            here, there = os.fstat(self._held.descriptor), os.stat(self.path, follow_symlinks=False)
        except OSError as error:
            raise _failed("is no longer at its path", error, "Put it back, and open it again") from None
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise LedgerError(
                "another file has taken its path", where=_WHERE, cure="Put the ledger back, and open it again"
            )
        if here.st_size != self._size:
            raise LedgerError("another program changed it", where=_WHERE, cure="Open it again, which verifies it")

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._held.descriptor, self._size)
            os.fsync(self._held.descriptor)
        except OSError:
            # The reader names the incomplete record.
            return

    def remove_unpublished(self) -> None:
        """Remove a file that was created and never published."""
        if self.created and self.path != self.final:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Unlock and close; again is harmless."""
        self._held.close()


def read_bytes(path: Path) -> bytes:
    """Return the content of the ledger file at `path`, without locking it; anything but an ordinary file is refused."""
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        raise _failed("cannot be opened", error, _PATH, path) from None
    try:
        _require_ordinary(descriptor)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _require_ordinary(descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise LedgerError("its path is not an ordinary file", where=_WHERE, cure="Choose another path")


def _sync_folder(path: Path) -> None:
    try:
        folder = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _failed("cannot be made durable in its folder", error, _LOCAL) from None
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _failed(what: str, error: OSError, cure: str, path: Path | None = None) -> Exception:
    """Return the error to raise; with `path` it names the file."""
    if error.errno is None:
        return error  # not the system's: a signal's handler raised it meanwhile (TimeoutError is an OSError)
    where = _WHERE if path is None else f"{_WHERE} {printable(str(path), _LONGEST_PATH)!r}"
    return LedgerError(f"it {what}: {os.strerror(error.errno)}", where=where, cure=cure)
