"""Which frames the threads of this process are in, asked such that nothing is collected meanwhile.

`sys._current_frames` holds a lock of the interpreter while it makes its answer. In CPython 3.11 a collection that
begins in it, and comes upon a `threading.local`, waits for the same lock: for ever.
"""

from __future__ import annotations

import gc
import sys
import threading
from types import FrameType

_LOCK = threading.RLock()
"""One asks at a time, so that nobody finds collection switched off by another and leaves it so."""


def frames_of_threads() -> dict[int, FrameType]:
    """Return the frame that each thread runs, by the thread's identifier."""
    with _LOCK:
        was_on = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if was_on:
                gc.enable()
