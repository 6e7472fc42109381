"""The identity of this process: keys and ledgers belong to the process that made them, and a fork must not use them."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

import hushgrad.system  # noqa: F401 - says in a sentence what would fail below

Process = tuple[int, int, bytes]

_WIPE_ON_FORK = 18
"""MADV_WIPEONFORK of Linux 4.14 and later, which Python does not name: a child finds zeros, whoever forked it."""

_TOKEN_BYTES = 8

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


def _wiped_page() -> mmap.mmap | None:
    """Return memory that a forked child finds empty; None where the system has none."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except (OSError, ValueError, AttributeError):
        return None
    return page


_page = _wiped_page()


def _token() -> bytes:
    """Return bytes that this process drew and no other one has, also not a child that compiled code forked."""
    if _page is None:
        return b""
    if not any(_page[:_TOKEN_BYTES]):
        _page[:_TOKEN_BYTES] = os.urandom(_TOKEN_BYTES)
    return _page[:_TOKEN_BYTES]


def this_process() -> Process:
    """Return an identity that no child of this process shares: its id, the forks that Python saw, and a token.

    The id alone is not enough: a child in a namespace of its own may have its parent's. Nor is the count: Python does
    not see a fork that compiled code makes. The token lies in memory that Linux empties in every forked child. A
    restored snapshot of the process shares all three; see `this_start`.
    """
    return os.getpid(), _forks, _token()


def this_start() -> tuple[bytes, bytes]:
    """Return when the kernel began this process, and which run of the machine it did so in; empty where not known.

    A process that was restored from a checkpoint (CRIU, a container's) was begun anew, though its memory and its id are
    those of the original. A machine that is restored with all that runs on it cannot be told from the original by
    anything here. This costs some 20 µs, `this_process` under one.
    """
    started = boot = b""
    with suppress(OSError):
        with open("/proc/self/stat", "rb", buffering=0) as file:
            started = file.read(4096).rpartition(b")")[2].split()[19]  # field 22; the name before may hold spaces
        with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
            boot = file.read(64)
    return started, boot
