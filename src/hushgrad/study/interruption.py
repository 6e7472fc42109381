"""Ctrl-C as a request: finish the running step, write everything, then end the run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def finish_step_on_interrupt(on_request: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM has come; the first signal only sets this flag.

    A second signal acts as usual (KeyboardInterrupt for Ctrl-C). The former handlers are restored at the end. Outside
    the main thread no signal can be handled, and the function always returns False.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return

    def request(number: int, frame: FrameType | None) -> None:
        requested.set()
        restore()
        on_request()

    former = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    try:
        yield requested.is_set
    finally:
        restore()
