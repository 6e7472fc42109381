"""Work on all of torch's own threads.

Between two parallel operations torch's OpenMP threads wait by spinning: each holds a core for milliseconds. Python
threads beside them would get half a core each: a draw of noise in a training step took three times as long as one
alone. So the spinning threads do the work, through the entry point that compiled OpenMP programs call. The runtimes of
GCC, LLVM and Intel have it; where torch uses another one, Python threads do the work.

A signal handler (Ctrl-C, an alarm) may raise on the main thread wherever Python enters a function. If OpenMP called a
Python function, ctypes would print and drop such an exception. So OpenMP resumes a generator instead, which waits
inside its own `try` and catches whatever is raised as it wakes up.
"""

from __future__ import annotations

import ctypes
from _thread import LockType, allocate_lock, start_new_thread
from collections.abc import Callable, Generator
from functools import cache, partial
from inspect import GEN_CLOSED, getgeneratorstate

from hushgrad.errors import InterruptedDrawError

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def on_all_threads(work: Callable[[], None], threads: int) -> None:
    """Call `work()` once on each of `threads` threads, at the same time, and return when all have ended.

    An OpenMP runtime may give fewer threads than it is asked for, so `work` must not count on their number.

    Args:
        work: what each thread does. It takes its share from a common supply, and releases the interpreter's lock
            while it computes; torch operations inside it run on one thread.
        threads: how many, the calling one included; usually `torch.get_num_threads()`.

    Raises:
        BaseException: what the first of the calls to fail raised, after all have ended; what others raised is its
            context.
        InterruptedDrawError: a call ended and did not say how.

    Guarantee: what a call raises is raised here, also what a signal's handler raises as the call begins.
    """
    if threads < 2:
        work()
        return
    ends: dict[int, BaseException | None] = {}
    shares = [_share(work, place, ends) for place in range(threads)]
    for share in shares:
        next(share)  # to its yield, inside its try
    # Called with None for `data`: next(next(shares), None). From here to the yield no function of Python's begins.
    enter = partial(next, map(next, shares))
    parallel = _openmp()
    try:
        if parallel is not None:
            parallel(_Body(enter), None, threads, 0)
        else:
            _on_threads_of_python(enter, threads - 1)
    finally:
        _raise([end for end in ends.values() if end is not None])
    if any(getgeneratorstate(share) == GEN_CLOSED and place not in ends for place, share in enumerate(shares)):
        raise InterruptedDrawError(
            "a thread left the draw and did not say how, so the update was not handed out",
            where="noise",
            cure="Go on with the next batch. If nothing interrupted the draw, report it, with the versions of hushgrad "
            "and Python",
        )


def _share(work: Callable[[], None], place: int, ends: dict[int, BaseException | None]) -> Generator[None, None, None]:
    """Do the work when asked a second time, and note how it ended: None, or what was raised.

    Signals are looked at where a function begins, after calls and in loops, so not between `except` and the end.
    """
    try:
        yield
        work()
        ends[place] = None
    except BaseException as error:  # must not pass through code that is not Python
        ends[place] = error


def _on_threads_of_python(enter: Callable[[None], None], helpers: int) -> None:
    """Call `enter(None)` on so many new threads and on this one; return when all have ended.

    `threading` and its pools are not made for handlers that raise: as a thread starts or ends, they lose such an
    exception or replace it. At their lowest level only an interrupt at the start of a thread can hide that it started.
    Such a thread is not waited for: it ends by itself, and nobody reads what it writes.
    """
    locks, started, ended = [allocate_lock() for _ in range(helpers)], [], set[LockType]()

    def help_with(lock: LockType) -> None:
        try:
            enter(None)
        finally:
            ended.add(lock)
            lock.release()

    try:
        for lock in locks:
            lock.acquire()
            start_new_thread(help_with, (lock,))
            started.append(lock)
        enter(None)
    finally:
        _wait_for(started, ended)


def _wait_for(locks: list[LockType], ended: set[LockType]) -> None:
    """Return when all have ended; what a handler raises meanwhile is raised after that."""
    try:
        for lock in locks:
            while lock not in ended:  # says it; that the lock is free again only wakes this thread up
                lock.acquire()
    except BaseException:
        _wait_for(locks, ended)
        raise


def _raise(errors: list[BaseException]) -> None:
    """Raise the first, with the others as its context; nothing if there are none."""
    if errors:
        try:
            _raise(errors[1:])
        finally:
            raise errors[0]


@cache
def _openmp() -> Callable[..., None] | None:
    """Return `GOMP_parallel(body, data, threads, flags)` of the OpenMP runtime in this process, or None."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel  # of the runtime that torch brought and made visible to all
    except (AttributeError, OSError, TypeError):
        return None
    parallel.argtypes = [_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    result: Callable[..., None] = parallel
    return result
