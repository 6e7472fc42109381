"""Which process this is: a key and a ledger belong to the one that made them, and a forked one must not use them."""

from __future__ import annotations

import os

Process = tuple[int, int]

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


def this_process() -> Process:
    """Return a mark that no child of this process shares: its id, and how many forks made it since the import.

    The id alone is not enough, since a child in a namespace of its own may have its parent's; nor is the count, since
    Python does not see a fork that compiled code makes. A copy of the process or of its machine (a snapshot that is
    restored) shares both.
    """
    return os.getpid(), _forks
