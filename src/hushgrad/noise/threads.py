"""Work on all of torch's own threads.

Between two parallel operations torch's OpenMP threads wait by spinning: for milliseconds each holds a core. Threads of
Python beside them get half of a core each, and a draw of noise in a training step took three times as long as one
alone. So the spinning threads themselves are put to work, through the entry that compiled OpenMP programs call. GCC's
runtime has it, and so do LLVM's and Intel's; where torch runs on another one, threads of Python do the work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def on_all_threads(work: Callable[[], None], threads: int) -> None:
    """Call `work()` once on each of `threads` threads, at the same time, and return when all have ended.

    Args:
        work: what each thread does. It takes its share from something common, and releases the interpreter's lock
            while it computes; operations of torch inside of it run on one thread.
        threads: how many, the calling one included; usually `torch.get_num_threads()`.

    Raises:
        BaseException: what the first of the calls to fail raised, after all have ended.
    """
    if threads < 2:
        work()
        return
    failures: list[BaseException] = []

    def body(_: Any = None) -> None:
        try:
            work()
        except BaseException as error:  # must not pass through code that is not Python
            failures.append(error)

    parallel = _openmp()
    if parallel is not None:
        parallel(_Body(body), None, threads, 0)
    else:
        with ThreadPoolExecutor(threads - 1) as pool:  # ends with the work: no thread outlives it, none is forked
            for _ in range(threads - 1):
                pool.submit(body)
            body()
    if failures:
        raise failures[0]


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
