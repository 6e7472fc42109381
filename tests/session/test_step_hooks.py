"""A step that a Ctrl-C ends keeps nothing of the user's alive, and is not taken for the one that follows."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hushgrad.session.step_hooks import StepHooks


class Optimizer(torch.optim.SGD):
    """Is interrupted when told so; its step calls its parent's when told so."""

    is_interrupted = False
    calls_parent = False

    def step(self, closure: Any = None) -> Any:
        if self.is_interrupted:
            raise KeyboardInterrupt
        return super().step(closure) if self.calls_parent else None


class Told:
    """What the hooks of an optimizer told."""

    def __init__(self) -> None:
        self.optimizer = Optimizer(nn.Linear(1, 1).parameters())
        self.events: list[str] = []
        names = ("start", "prepare", "finish", "abandon")
        self.hooks = StepHooks(self.optimizer, **{name: self._note(name) for name in names})

    def _note(self, name: str) -> Any:
        return lambda: self.events.append(name)

    def interrupted_step(self) -> weakref.ref[Tensor]:
        batch = torch.ones(3)  # of the caller, as it is in a loop
        self.optimizer.is_interrupted = True
        try:
            self.optimizer.step()
        except KeyboardInterrupt:
            self.optimizer.is_interrupted = False
            return weakref.ref(batch)
        raise AssertionError


def test_a_step_that_is_interrupted_keeps_no_batch_alive() -> None:
    told = Told()
    reference = told.interrupted_step()
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("calls_parent", [False, True])
def test_each_step_after_an_interrupted_one_is_a_step_of_its_own(calls_parent: bool) -> None:
    """A frame of torch's wrapper comes to lie where the last one lay, in every one of these steps."""
    told = Told()
    told.optimizer.calls_parent = calls_parent
    for _ in range(5):
        told.interrupted_step()
        told.events.clear()
        told.optimizer.step()
        assert told.events == ["start", "prepare", "finish"]


def test_a_step_that_calls_its_parents_prepares_one_update() -> None:
    told = Told()
    told.optimizer.calls_parent = True
    told.optimizer.step(lambda: told.events.append("closure"))
    assert told.events == ["start", "closure", "prepare", "finish"]
