"""An interrupt at a named point of a draw of noise: it is heard, and nothing comes out that lacks its noise."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from operator import truediv
from typing import Any

import pytest
import torch
from points import AlarmError, interrupted_at, pending_before
from torch import Tensor

from hushgrad.errors import InterruptedDrawError
from hushgrad.noise import chunks, gaussian, threads
from hushgrad.noise.backends import ArrayBackend
from hushgrad.noise.gaussian import Noised, noisy_updates
from hushgrad.noise.threads import on_all_threads
from hushgrad.randomness import Address, KeyStream

SIZES = {torch.float32: 3500, torch.float64: 1200}


@pytest.fixture(params=["openmp", "python"])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    elif threads._openmp() is None:
        pytest.skip("torch runs on an OpenMP runtime without GOMP_parallel here")
    return str(request.param)


@pytest.fixture(params=["arrays", "fastest"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads for a few thousand values, in chunks of a thousand."""
    if request.param == "arrays":
        monkeypatch.setattr(gaussian, "backend", lambda: ArrayBackend)
    monkeypatch.setattr(gaussian.backend(), "size", 1000)
    monkeypatch.setattr(gaussian.backend(), "worth_a_thread", 1)
    monkeypatch.setattr(gaussian, "_idle", {word: deque() for word in gaussian._idle})
    torch.set_num_threads(2)


def draw(stream: Any = None, *, overwrite: bool = True) -> list[Tensor]:
    """Return two updates of sums of one, drawn together."""
    parts = [
        Noised(torch.ones(size, dtype=dtype), Address(1, item), overwrite)
        for item, (dtype, size) in enumerate(SIZES.items())
    ]
    return noisy_updates(parts, noise_std=2.0, divisor=4.0, stream=stream or KeyStream.fixed_for_tests(5))


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Interrupting:
    """A stream whose fill does something first, on the main thread only."""

    def __init__(self, first: Callable[[], object]) -> None:
        self.first, self.stream = first, KeyStream.fixed_for_tests(5)

    def fill(self, buffer: Any, address: Address, offset: int = 0) -> None:
        if threading.current_thread() is threading.main_thread():
            self.first()
        self.stream.fill(buffer, address, offset)


def meeting_of_two(work: Callable[[], None]) -> Callable[[], None]:
    """Let nobody begin before both threads are there, so that the main one takes part."""
    barrier = threading.Barrier(2)

    def both() -> None:
        barrier.wait(timeout=30)
        work()

    return both


# The entry -----------------------------------------------------------------------------------------------------------


def test_what_a_handler_raises_as_openmp_calls_a_share_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: what a call raises is raised here, also what a signal's handler raises as the call begins."""
    parallel = threads._openmp()
    if parallel is None:
        pytest.skip("torch runs on an OpenMP runtime without GOMP_parallel here")
    monkeypatch.setattr(threads, "_openmp", lambda: partial(pending_before, parallel))
    done: list[bool] = []
    with pytest.raises(AlarmError):
        on_all_threads(lambda: done.append(True), 2)
    assert len(done) == 1  # the other thread's
    with pytest.raises(AlarmError):
        draw_on_two_threads(monkeypatch)


def draw_on_two_threads(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    torch.set_num_threads(2)
    monkeypatch.setattr(gaussian.backend(), "worth_a_thread", 1)
    return draw()


def test_a_function_in_place_of_the_share_would_lose_it(dropped: list[object]) -> None:
    """The fault that the test above would find: this is what ctypes does."""
    called: list[bool] = []
    pending_before(threads._Body(lambda _: called.append(True)), None)
    assert called == []
    assert [type(error) for error in dropped] == [AlarmError]
    dropped.clear()


def test_an_interrupt_as_a_thread_of_python_is_started_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """What began before has ended then."""
    begun: list[bool] = []
    ended: list[bool] = []
    start = threads.start_new_thread

    def interrupted(*args: Any) -> Any:
        if begun:
            raise AlarmError
        begun.append(True)
        return start(*args)

    monkeypatch.setattr(threads, "_openmp", lambda: None)
    monkeypatch.setattr(threads, "start_new_thread", interrupted)
    with pytest.raises(AlarmError):
        on_all_threads(lambda: ended.append(True), 3)
    assert ended == begun == [True]


# In the work ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupt_inside_of_a_chunk_is_raised(small: None, runtime: str, overwrite: bool) -> None:
    before = draw()
    with pytest.raises(AlarmError):
        draw(Interrupting(partial(signal.raise_signal, signal.SIGUSR1)), overwrite=overwrite)
    assert same(draw(), before)


def test_an_interrupt_while_another_failure_is_noted_is_raised_with_it(runtime: str) -> None:
    """The signal is seen only after the share has ended: the handler's exception is the context of the failure."""

    def work() -> None:
        if threading.current_thread() is threading.main_thread():
            pending_before(truediv, 1, 0)

    with pytest.raises(ZeroDivisionError) as caught:
        on_all_threads(meeting_of_two(work), 2)
    assert isinstance(caught.value.__context__, AlarmError)


def test_an_interrupt_is_raised_also_where_another_thread_failed_first(runtime: str) -> None:
    failed = threading.Event()

    def work() -> None:
        if threading.current_thread() is threading.main_thread():
            failed.wait(timeout=30)
            signal.raise_signal(signal.SIGUSR1)
        try:
            raise MemoryError
        finally:
            failed.set()

    with pytest.raises((MemoryError, AlarmError)) as caught:
        on_all_threads(meeting_of_two(work), 2)
    assert {type(caught.value), type(caught.value.__context__)} == {MemoryError, AlarmError}


def test_an_interrupt_while_the_others_are_waited_for_is_raised(runtime: str) -> None:
    """Its handler runs as the main thread comes back from OpenMP; on threads of Python, while it waits."""
    is_waiting = threading.Event()

    def work() -> None:
        if threading.current_thread() is threading.main_thread():
            is_waiting.set()
        else:
            is_waiting.wait(timeout=30)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    with pytest.raises(AlarmError):
        on_all_threads(meeting_of_two(work), 2)


def test_after_a_failure_the_other_threads_begin_no_further_chunk(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    other_has_begun = threading.Event()
    chunk = gaussian._Draw.chunk

    def slow(self: Any, start: int, *rest: Any) -> Any:
        begun.append(start)
        if threading.current_thread() is threading.main_thread():
            other_has_begun.wait(timeout=30)
            raise AlarmError
        other_has_begun.set()
        for _ in range(3000):
            if is_cleared():
                break
            time.sleep(0.01)
        return chunk(self, start, *rest)

    deques: list[deque[int]] = []

    def noted(values: Any) -> deque[int]:
        deques.append(deque(values))
        return deques[-1]

    def is_cleared() -> bool:
        return not deques[0]

    monkeypatch.setattr(chunks, "deque", noted)
    monkeypatch.setattr(gaussian._Draw, "chunk", slow)
    parallel = threads.on_all_threads
    monkeypatch.setattr(chunks, "on_all_threads", lambda work, count: parallel(meeting_of_two(work), count))
    with pytest.raises(AlarmError):
        draw()
    assert len(begun) == 2


# What is left --------------------------------------------------------------------------------------------------------


def test_what_no_thread_came_for_is_drawn_by_the_caller(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw()
    monkeypatch.setattr(chunks, "on_all_threads", lambda work, count: None)
    assert same(draw(), expected)


def test_one_thread_where_two_were_asked_for_draws_it_all(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw()
    monkeypatch.setattr(threads, "_openmp", lambda: lambda body, data, count, flags: body(data))
    assert same(draw(), expected)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_chunk_that_was_begun_and_did_not_end_is_no_update(
    small: None, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """Guarantee: it returns only after every chunk has said that its values are written and which of them are missing.

    It is not drawn again: a sum that is written over would get noise twice in a part of it."""
    places: list[int] = []
    chunk = gaussian._Draw.chunk

    def interrupted(self: Any, start: int, *rest: Any) -> Any:
        places.append(start)
        result = chunk(self, start, *rest)
        if len(places) == 2:
            raise AlarmError
        return result

    def deaf(work: Callable[[], None], count: int) -> None:
        with pytest.raises(AlarmError):
            work()

    monkeypatch.setattr(gaussian._Draw, "chunk", interrupted)
    monkeypatch.setattr(chunks, "on_all_threads", deaf)
    with pytest.raises(InterruptedDrawError, match="charged for it stands"):
        draw(overwrite=overwrite)
    assert len(places) == len(set(places)) == 2


def test_a_share_that_ended_without_a_word_is_an_error(
    runtime: str, monkeypatch: pytest.MonkeyPatch, dropped: list[object]
) -> None:
    def careless(work: Callable[[], None], place: int, ends: dict[int, Any]) -> Generator[None, None, None]:
        yield
        work()

    def work() -> None:
        if threading.current_thread() is threading.main_thread():
            pending_before(int, "1")

    monkeypatch.setattr(threads, "_share", careless)
    with pytest.raises((InterruptedDrawError, AlarmError)):
        on_all_threads(meeting_of_two(work), 2)
    dropped.clear()


def test_an_interrupt_at_any_moment_of_a_draw_is_raised_and_no_update_comes_out(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread does all, called as OpenMP calls it, so that each draw has the same moments."""
    monkeypatch.setattr(threads, "_openmp", lambda: lambda body, data, count, flags: body(data))
    expected, point = draw(), 1
    while look_at_moment(point, expected):
        point += 1
    assert point > 300


def test_an_interrupt_at_any_moment_is_raised_also_beside_a_thread_that_draws(small: None, runtime: str) -> None:
    """How many moments the main thread has depends on what the other one leaves to it; not all draws have them all."""
    expected = draw()
    assert sum(look_at_moment(point, expected) for point in range(1, 500, 7)) > 15


def look_at_moment(point: int, expected: list[Tensor]) -> bool:
    """Draw with an interrupt at that moment, if there is such a one, and say whether there was."""
    updates: list[Tensor] = []
    outcome = interrupted_at(point, lambda: updates.extend(draw()), _is_of_the_draw)
    if outcome.rang:
        assert isinstance(outcome.error, AlarmError), f"at moment {point}: {outcome.error!r}"
        assert updates == []
    else:
        assert outcome.error is None
        assert same(updates, expected)
    idle = [id(backend) for queue in gaussian._idle.values() for backend in queue]
    assert len(idle) == len(set(idle))
    return outcome.rang


def _is_of_the_draw(file: str) -> bool:
    return "hushgrad/noise/" in file
