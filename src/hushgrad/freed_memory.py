"""Memory that a step frees stays with the process, for the next step, where the C library would give it back.

glibc gives freed memory at the end of the heap back to the system above a threshold, and maps large blocks one by one.
A step that forms gradients anew then maps them in again, a page fault for every 4 KiB: 200 MB in each step of an
encoder. Blocks that the library itself kept from step to step would lie beside what forward and backward take; kept by
the allocator, the same memory serves both.

It is a setting of the whole process: what was once in use stays resident until the process ends. A user's own setting
of the allocator decides where there is one, and `HUSHGRAD_FREED_MEMORY=return` leaves the allocator as it is.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

from hushgrad.arguments import one_of

VARIABLE = "HUSHGRAD_FREED_MEMORY"

OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")
"""What glibc reads when a process starts; `GLIBC_TUNABLES` says the same in one variable."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings in malloc.h (mallopt(3))."""

_NEVER = -1
_LARGEST_BLOCK = 1 << 25
"""Bytes; glibc takes no higher threshold, and larger blocks are mapped anew each time."""


@cache
def keep_freed_memory() -> bool:
    """Let this process keep what it frees, unless the user said otherwise; return whether it was told to.

    False also where the C library is not glibc. Asked once for the process.

    Raises:
        InvalidArgumentError: `HUSHGRAD_FREED_MEMORY` is neither `keep` nor `return`.
    """
    choice = one_of(VARIABLE, os.environ.get(VARIABLE, "keep"), ("keep", "return"))
    if choice == "return" or _is_set_by_user():
        return False
    library = ctypes.CDLL(None)
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False
    # Both succeed or the block threshold is refused, and then nothing is changed.
    return bool(library.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK) and library.mallopt(_TRIM_THRESHOLD, _NEVER))


def _is_set_by_user() -> bool:
    return any(name in os.environ for name in OF_THE_USER) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
