"""Interrupts at points that a test names, so that nothing depends on time.

`AlarmError` is what the handler of a signal raises. It is an `Exception`, as a timeout by `signal.alarm` is (and a
`KeyboardInterrupt` is not), so that code that catches too much is found, too.
"""

from __future__ import annotations

import ctypes
import dis
import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from operator import call
from types import CodeType, FrameType
from typing import Any

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_raise = ctypes.CDLL(None)["raise"]


class AlarmError(Exception):
    """Raised by the handler of a signal, or at a point where one could have raised it."""


def ring(number: int, frame: FrameType | None) -> None:
    raise AlarmError


@contextmanager
def alarms() -> Iterator[None]:
    """Let SIGUSR1 raise an AlarmError."""
    former = signal.signal(signal.SIGUSR1, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, former)


def pending_before(function: Callable[..., Any], *args: Any) -> Any:
    """Call the function while a signal has come and its handler has not run.

    No function of Python's begins between the two calls, and the first does not look at signals (`signal.raise_signal`
    would): so the handler runs where `function` first lets it, if it is one of Python's as it begins.
    """
    return list(map(call, (partial(_raise, int(signal.SIGUSR1)), partial(function, *args))))[1]


@cache
def _lookouts(code: CodeType) -> frozenset[int]:
    """Return the offsets where the exception of a handler can appear inside of this code, its first one left out.

    CPython looks at signals as a function begins or a generator goes on, after a call and at the end of a loop's body.
    """
    found = set()
    previous = None
    for instruction in dis.get_instructions(code):
        after_call = previous is not None and previous.opname.startswith("CALL") and instruction.opname != "CACHE"
        went_on = previous is not None and previous.opname == "RESUME" and previous.arg != 0
        if after_call or went_on or instruction.opname.startswith("JUMP_BACKWARD"):
            found.add(instruction.offset)
        previous = instruction
    return frozenset(found)


@dataclass(frozen=True)
class Outcome:
    """Whether there was such a point (so that an AlarmError was raised there), and what came out."""

    rang: bool
    error: BaseException | None


def interrupted_at(point: int, run: Callable[[], object], is_watched: Callable[[str], bool]) -> Outcome:
    """Run, and raise an AlarmError at moment number `point`, from 1, where a handler could, in files that are watched.

    Moments of the calling thread are counted only: the main thread, where handlers run.
    """
    met = 0

    def meet() -> None:
        nonlocal met
        met += 1
        if met == point:
            raise AlarmError

    def within(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode" and frame.f_lasti in _lookouts(frame.f_code):
            meet()
        return within

    def begin(frame: FrameType, event: str, arg: Any) -> Any:
        if not is_watched(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if not frame.f_code.co_flags & _GENERATOR:  # which lets a handler run after its yield, so within
            meet()
        return within

    error: BaseException | None = None
    former = sys.gettrace()
    sys.settrace(begin)
    try:
        run()
    except BaseException as raised:
        error = raised
    finally:
        sys.settrace(former)
    return Outcome(met >= point, error)
