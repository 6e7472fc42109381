"""The identity of this process: keys and ledgers belong to the process that made them, and a fork must not use them."""

from __future__ import annotations

import os

Process = tuple[int, int]

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


def this_process() -> Process:
    """Return an identity that no child of this process shares: its id, and the number of forks since the import.

    The id alone is not enough: a child in a namespace of its own may have its parent's. Nor is the count: Python does
    not see a fork that compiled code makes. A restored snapshot of the process or of its machine shares both.
    """
    return os.getpid(), _forks
