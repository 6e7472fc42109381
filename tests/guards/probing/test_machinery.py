"""Of what runs a program is looked at what was hung on it and what holds values: no more, and nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing as mp
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from first_forwards import Body, attached, data
from torch import nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.guards.probing.holders import content_of, is_same, refill
from hushgrad.guards.probing.machinery import (
    Hung,
    await_result,
    hung_on,
    is_machinery,
    is_of_own,
    is_to_come,
    names_set_by,
)
from hushgrad.guards.probing.state_values import is_atom


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def hung(value: Any) -> dict[str, Any]:
    return {name: part for holder in hung_on(value) for name, part in holder.content().items()}


def owned(*roots: Any) -> list[Any]:
    """This library's own objects that some of them reach through one another and through containers."""
    waiting, known = list(roots), {}
    while waiting:
        value = waiting.pop()
        if id(value) not in known and (is_of_own(value) or isinstance(value, (dict, list, tuple, set))):
            known[id(value)] = value
            waiting += gc.get_referents(value)
    return [value for value in known.values() if is_of_own(value) and not is_atom(value)]


MACHINES: dict[str, Any] = {
    "an engine": PrivacyEngine,
    "a loader": lambda: DataLoader([1, 2]),
    "a pool": lambda: ThreadPoolExecutor(1),
    "a pool of multiprocessing": lambda: ThreadPool(1),
    "a logger": lambda: logging.getLogger("of a test"),
    "a condition": threading.Condition,
    "a loop": asyncio.new_event_loop,
    "a queue of processes": mp.Queue,
    "a lock of processes": mp.Lock,
}


@pytest.mark.parametrize("name", MACHINES)
def test_what_runs_a_program_is_known_and_holds_nothing_but_what_was_hung_on_it(name: str) -> None:
    machine = MACHINES[name]()
    assert is_machinery(machine)
    assert hung(machine).keys() <= {"manager"}  # set on every logger, from outside of its class
    machine.kept = 1.0
    assert hung(machine)["kept"] == 1.0
    del machine.kept


def test_objects_that_hold_values_are_no_machinery() -> None:
    values = [SimpleNamespace(), [], nn.Linear(1, 1), threading.Event(), threading.local(), torch.ones(1), int]
    assert not any(map(is_machinery, values))


def test_after_training_nothing_is_hung_on_this_librarys_own_objects_and_on_loaders() -> None:
    """Their classes set every attribute themselves: what stands there besides is somebody else's."""
    model = Body()
    engine, optimizer, loader = attached(model, data())
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for x, y in loader:
        criterion(model(x), y).backward()
        optimizer.step()
    engine.session.guarantee(1e-5)
    found = owned(engine, loader, criterion)
    assert any(value is engine.session for value in found)
    assert {(type(value).__qualname__, name) for value in found for name in hung(value)} == set()


def test_attributes_of_a_users_subclass_are_hung_on_it() -> None:
    class Mine(DataLoader[Any]):
        def __init__(self) -> None:
            super().__init__([1, 2])
            self.kept = 1.0

    assert hung(Mine()) == {"kept": 1.0}
    assert "dataset" in names_set_by(DataLoader)
    assert "kept" not in names_set_by(Mine)


def test_buffers_and_modules_that_are_hung_on_a_criterion_are_seen() -> None:
    criterion = attached(Body(), data())[0].per_example(nn.CrossEntropyLoss())
    assert hung(criterion) == {}
    part = nn.Linear(1, 1)
    criterion.register_buffer("seen", torch.ones(1))
    criterion.part = part
    assert hung(criterion) == {"seen": criterion.seen, "part": part}


def test_what_was_hung_on_it_is_put_back_and_what_is_new_goes() -> None:
    engine: Any = PrivacyEngine()
    engine.kept = first = [1.0]
    holder = next(iter(hung_on(engine)))
    content = content_of(holder)
    assert content == {"kept": [1.0]}
    engine.kept, engine.more = [2.0], 3.0
    assert not is_same(holder, content)
    refill(holder, content)
    assert is_same(holder, content)
    assert engine.kept is first
    assert not hasattr(engine, "more")


# Results ---------------------------------------------------------------------------------------------------------


def test_the_result_of_a_future_is_its_value_and_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # nobody else computes it
    future: Future[float] = Future()
    holder = Hung(future, vars(future))
    before = content_of(holder)
    assert before["_state"] == "PENDING"
    future.set_result(1.0)
    assert content_of(holder)["_result"] == 1.0
    refill(holder, before)
    future.set_result(2.0)
    assert future.result() == 2.0


def test_a_result_that_another_thread_computes_is_waited_for_and_never_taken_away(pool: Executor) -> None:
    gate = threading.Event()
    future = pool.submit(lambda: gate.wait() and 1.0)
    assert is_to_come(future)
    assert not await_result(future, time.monotonic())
    holder = Hung(future, vars(future))
    content = content_of(holder)
    assert content == {}
    gate.set()
    assert await_result(future, time.monotonic() + 60)
    refill(holder, content)
    assert future.result(0) == 1.0
    assert hung(future)["_result"] == 1.0


def test_nothing_is_waited_for_where_nobody_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    begun = time.monotonic()
    assert await_result(object(), begun + 60)
    assert await_result(Future(), begun + 60)
    assert time.monotonic() - begun < 30


def test_the_result_of_a_pool_of_multiprocessing_is_its_value() -> None:
    with ThreadPool(1) as threads:
        result = threads.apply_async(float, (2.0,))
        assert await_result(result, time.monotonic() + 60)
        assert hung(result)["_value"] == 2.0


def test_the_work_of_a_thread_is_looked_at_until_it_begins() -> None:
    thread = threading.Thread(target=len, args=([],))
    assert hung(thread) == {"_target": len, "_args": ([],), "_kwargs": {}}
    thread.start()
    thread.join()
    assert hung(thread) == {}
