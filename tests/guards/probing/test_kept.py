"""What a model keeps beside parameters: found wherever it is, but for what trains the model."""

from __future__ import annotations

import copy
import itertools
import logging
import multiprocessing
import operator
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from first_forwards import BATCH, CLASSES, WIDTH, Body, attached, data
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import PrivateBufferError
from hushgrad.guards.probing import kept
from hushgrad.guards.probing.kept import kept_by
from hushgrad.guards.probing.state import describe


class Trainer:
    """Holds everything, and what it is told to remember."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


def keep(model: nn.Module, what: str, engine: PrivacyEngine, optimizer: Any, loader: Any) -> None:
    parts: dict[str, Callable[[], Any]] = {
        "engine": lambda: engine,
        "session": lambda: engine.session,
        "criterion": lambda: engine.per_example(nn.CrossEntropyLoss()),
        "optimizer": lambda: optimizer,
        "loader": lambda: loader,
        "list": lambda: [engine, {"session": engine.session}],
        "trainer": lambda: Trainer(
            engine=engine, session=engine.session, optimizer=optimizer, loader=loader, model=model
        ),
    }
    if what == "itself":
        vars(model)["me"] = model
    else:
        setattr(model, what, parts[what]())


KEPT = ["engine", "session", "criterion", "optimizer", "loader", "list", "trainer", "itself"]


@pytest.mark.parametrize("path", ["criterion", "losses", "scalar"])
@pytest.mark.parametrize("what", KEPT)
def test_a_model_may_keep_what_trains_it(what: str, path: str) -> None:
    model = Body()
    twin = copy.deepcopy(model)
    updated = []
    for part, keeps in ((model, True), (twin, False)):
        engine, optimizer, loader = attached(part, TensorDataset(*[t[:BATCH] for t in data().tensors]), lr=0.1)
        if keeps:
            keep(part, what, engine, optimizer, loader)
        torch.manual_seed(0)
        for x, y in [(torch.randn(BATCH, WIDTH), torch.arange(BATCH) % CLASSES)]:
            for _ in loader:
                if path == "criterion":
                    engine.per_example(nn.CrossEntropyLoss())(part(x), y).backward()
                elif path == "losses":
                    engine.session.backward(F.cross_entropy(part(x), y, reduction="none"))
                else:
                    F.cross_entropy(part(x), y).backward()
                optimizer.step()
        assert engine.session.steps == 1
        updated.append(part.head.weight.detach())
    assert torch.equal(*updated)


@pytest.mark.parametrize("what", KEPT)
def test_state_beside_what_trains_it_is_still_looked_at(what: str) -> None:
    class Follows(Body):
        def prepare(self, x: Tensor) -> None:
            holder = vars(self).get("trainer", self.box)
            holder.largest = float(x.max())

    model = Follows()
    engine, optimizer, loader = attached(model, data())
    keep(model, what, engine, optimizer, loader)
    x, y = next(iter(loader))
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(PrivateBufferError, match="largest"):
        optimizer.step()
    assert engine.session.steps == 0


# What is found ---------------------------------------------------------------------------------------------------


class Deep(nn.Module):
    shared = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(2))
        self.count = 3
        self.box = SimpleNamespace(values=[torch.ones(1), {"inner": np.zeros(2)}])
        self.words = "no state"
        self.generator = torch.Generator()


def places(model: nn.Module) -> set[str]:
    return {describe(key) for key, _ in kept_by(model)[0]}


def test_buffers_attributes_nested_values_generators_and_values_of_the_class_are_found() -> None:
    assert places(Deep()) >= {"seen", "count", "box.values.0", "box.values.1.inner", "generator"}
    assert any(place.endswith("Deep.shared") for place in places(Deep()))


def test_parameters_and_modules_are_no_state_and_words_are() -> None:
    assert not places(Deep()) & {"layer", "layer.weight", "layer.bias"}
    assert "words" in places(Deep())


def test_each_object_is_looked_into_once_however_often_it_is_held() -> None:
    model = Deep()
    model.box.itself, model.again = model.box, model.box.values
    assert [key for key, value in kept_by(model)[0] if value is model.box.values[0]] == [("attribute", "again", 0)]


def test_parameters_of_a_module_that_an_object_holds_are_looked_at_and_one_that_never_began_is_no_error() -> None:
    class Helper:
        pass

    model, helper = Deep(), Helper()
    began, never = nn.Linear(2, 1), nn.Linear.__new__(nn.Linear)
    never.__dict__["width"] = 5
    helper.began, helper.never = began, never  # type: ignore[attr-defined]
    model.helper = helper
    found = {id(value) for key, value in kept_by(model).cells if "parameter" in key}
    assert found == {id(began.weight), id(began.bias)}


def done(value: float) -> Future[float]:
    future: Future[float] = Future()
    future.set_result(value)
    return future


def steps() -> Any:
    yield 1.0


QUIET: dict[str, Callable[[], Any]] = {
    "a logger": lambda: logging.getLogger("kept"),
    "a lock": threading.Lock,
    "a lock of processes": multiprocessing.Lock,
    "a condition": threading.Condition,
    "a pool": lambda: ThreadPoolExecutor(1),
    "a result": lambda: done(1.0),
    "a queue": queue.Queue,
    "a number that processes share": lambda: multiprocessing.Value("d", 1.0),
    "a local": threading.local,
    "an item of another": lambda: operator.itemgetter(1),
    "a method of a list": lambda: [].append,
    "a generator at its end": lambda: [generator := steps(), list(generator)][0],
    "what is zipped": lambda: zip([1.0], [2.0], strict=True),
}

SAID: dict[str, Callable[[], Any]] = {
    "queue.SimpleQueue": queue.SimpleQueue,
    "multiprocessing.queues.Queue": multiprocessing.Queue,
    "itertools.count": itertools.count,
    "enumerate": lambda: enumerate([1.0]),
    "generator": steps,
    "dict_keyiterator": lambda: iter({1: 2}),
}


@pytest.mark.parametrize("name", QUIET)
def test_what_holds_nothing_unread_is_not_said(name: str) -> None:
    assert kept_by(SimpleNamespace(v=QUIET[name]())).unread == []


@pytest.mark.parametrize("name", SAID)
def test_what_has_a_place_that_cannot_be_put_back_is_said_by_name(name: str) -> None:
    (found,) = kept_by(SimpleNamespace(v=SAID[name]())).unread
    assert name.rpartition(".")[2] in found


def test_what_other_threads_keep_in_a_variable_of_the_context_is_said_while_there_are_any() -> None:
    variable: ContextVar[float] = ContextVar("of_a_test")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(variable.set, 1.0).result()
        (found,) = kept_by(SimpleNamespace(v=variable)).unread
    assert "for other threads" in found


def test_a_result_that_another_thread_is_late_with_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "PATIENCE", 0.01)
    gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        (found,) = kept_by(SimpleNamespace(v=pool.submit(gate.wait))).unread
        gate.set()
    assert "will hold" in found
