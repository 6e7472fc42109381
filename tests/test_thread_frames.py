"""Asking for the frames of threads never waits for a collection, and leaves collection as it was."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import pytest

from hushgrad.thread_frames import frames_of_threads


def test_each_thread_has_its_frame() -> None:
    inside, done = threading.Event(), threading.Event()

    def work() -> None:
        inside.set()
        done.wait()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    frames = frames_of_threads()
    done.set()
    thread.join()
    assert frames[threading.get_ident()].f_code.co_name == "frames_of_threads"
    names, frame = [], frames[thread.ident or 0]
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    assert "work" in names


@pytest.mark.parametrize("is_on", [True, False])
def test_collection_stays_as_it_was(is_on: bool) -> None:
    was_on = gc.isenabled()
    try:
        (gc.enable if is_on else gc.disable)()
        frames_of_threads()
        assert gc.isenabled() is is_on
    finally:
        (gc.enable if was_on else gc.disable)()


PROGRAM = """
import gc, threading
from hushgrad.thread_frames import frames_of_threads

class Kept:
    def __init__(self):
        self.itself, self.local = self, threading.local()
        self.local.value = 1

for allocations in range(1, 40):  # a collection after so many: one of them within the call
    gc.collect()
    gc.disable()
    Kept()
    gc.set_threshold(allocations)
    gc.enable()
    kept = [frames_of_threads() for _ in range(allocations)]
print("done")
"""


def test_what_is_collected_meanwhile_may_be_local_to_a_thread() -> None:
    """In a process of its own, which would otherwise wait for ever."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout == "done\n", ended.stderr
