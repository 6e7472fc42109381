"""Work is done once on each thread, and what fails there is raised here."""

from __future__ import annotations

import threading

import pytest

from hushgrad.noise import threads as module
from hushgrad.noise.threads import on_all_threads


@pytest.fixture(params=["openmp", "python"], autouse=True)
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(module, "_openmp", lambda: None)
    elif module._openmp() is None:
        pytest.skip("torch runs on an OpenMP runtime without GOMP_parallel here")
    return request.param


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_thread_works_once_and_at_the_same_time(threads: int) -> None:
    meeting = threading.Barrier(threads)  # passed only if all are there at once
    seen: list[int] = []

    def work() -> None:
        meeting.wait(timeout=30)
        seen.append(threading.get_ident())

    on_all_threads(work, threads)
    assert len(seen) == len(set(seen)) == threads
    assert threading.get_ident() in seen


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_one_thread_raises_is_raised_after_all_have_ended(error: type[BaseException]) -> None:
    meeting = threading.Barrier(2)
    ended: list[bool] = []

    def work() -> None:
        if meeting.wait(timeout=30) == 0:
            raise error("in one thread")
        ended.append(True)

    with pytest.raises(error, match="in one thread"):
        on_all_threads(work, 2)
    assert ended == [True]
    on_all_threads(lambda: ended.append(True), 1)
    assert len(ended) == 2
