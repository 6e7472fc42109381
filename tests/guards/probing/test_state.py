"""The model that comes back is the model that went in, after its first forward; and what it made must hold no batch."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from first_forwards import BATCH, CLASSES, READY, WIDTH, Body, held, train
from torch import Tensor, nn

from hushgrad import doctor
from hushgrad.guards.probing.kept import CacheEntry, ThreadNumber
from hushgrad.guards.probing.state import State, describe, following, forked_randomness, randomness_used


class FlagAndHooks(Body):
    def prepare(self, x: Tensor) -> None:
        if "is_ready" not in vars(self):
            self.first.register_forward_hook(lambda module, args, out: out + 1)
            self.first.register_forward_hook(lambda module, args, out: out * 1.5, prepend=True)
            self.is_ready = True


class FlagInAnObject(Body):
    def prepare(self, x: Tensor) -> None:
        if "is_ready" not in vars(self.box):
            self.first.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
            self.box.is_ready = True


class FlagOfTheClass(Body):
    is_ready = False
    calls = 0

    def prepare(self, x: Tensor) -> None:
        type(self).calls += 1
        if not type(self).is_ready:
            self.first.register_forward_hook(lambda module, args, out: out * 1.5)
            type(self).is_ready = True


class FlagInARegistry(Body):
    def prepare(self, x: Tensor) -> None:
        if self not in READY:
            self.first.register_forward_hook(lambda module, args, out: out * 1.5)
            READY.add(self)


class OwnBuffer(Body):
    def prepare(self, x: Tensor) -> None:
        if "mask" not in self._buffers:
            self.register_buffer("mask", torch.full((CLASSES,), 2.0), persistent=False)

    def after(self, out: Tensor) -> Tensor:
        return out * self.mask


class OwnPart(Body):
    def prepare(self, x: Tensor) -> None:
        if "scale" not in self._modules:
            self.scale = nn.Tanh()

    def after(self, out: Tensor) -> Tensor:
        return self.scale(out)


class OtherHooks(Body):
    def prepare(self, x: Tensor) -> None:
        if not self.head._backward_hooks:
            self.head.register_full_backward_hook(lambda module, inner, outer: None)
            self.register_state_dict_pre_hook(lambda *args: None)
            self.register_load_state_dict_post_hook(lambda *args: None)


class HookTakenAway(Body):
    def prepare(self, x: Tensor) -> None:
        self.handle.remove()


class OtherModes(Body):
    def prepare(self, x: Tensor) -> None:
        self.first.eval()
        self.calls = vars(self).get("calls", 0) + 1


HONEST = [
    FlagAndHooks,
    FlagInAnObject,
    FlagOfTheClass,
    FlagInARegistry,
    OwnBuffer,
    OwnPart,
    OtherHooks,
    HookTakenAway,
    OtherModes,
]


def forget(make: type[Body]) -> None:
    if make is FlagOfTheClass:
        FlagOfTheClass.is_ready, FlagOfTheClass.calls = False, 0


@pytest.mark.parametrize("make", HONEST)
def test_what_a_first_forward_makes_is_made_once(make: type[Body]) -> None:
    """Hooks with their flag, parts, buffers, modes: all as in a model that was never probed."""
    forget(make)
    model, x = make(), torch.randn(BATCH, WIDTH)
    twin = copy.deepcopy(model)
    engine = train(model)
    assert engine.session.probe_report.examined
    engine.session.close()
    calls = FlagOfTheClass.calls
    forget(make)
    twin(x), twin(x)
    assert calls == FlagOfTheClass.calls
    assert held(model) == held(twin)
    assert torch.equal(model.eval()(x), twin.eval()(x))


@pytest.mark.parametrize("make", [make for make in HONEST if make is not FlagInARegistry])
def test_doctor_leaves_no_first_forward_behind(make: type[Body]) -> None:
    forget(make)
    model = make()
    before = held(model)
    assert doctor(model, torch.randn(BATCH, WIDTH)).uses
    assert held(model) == before
    assert FlagOfTheClass.calls == 0 or make is not FlagOfTheClass


# A copy of what a model keeps ------------------------------------------------------------------------------------


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("seen", torch.tensor([float("nan"), 1.0]))
        self.count, self.array = 0, np.zeros(2)


CHANGES: dict[str, tuple[Callable[[Keeps], Any], str]] = {
    "a buffer": (lambda m: m.seen.add_(1), "seen"),
    "a buffer that is exchanged": (lambda m: setattr(m, "seen", torch.ones(2)), "seen"),
    "a number": (lambda m: setattr(m, "count", 1), "count"),
    "an array": (lambda m: m.array.__setitem__(0, 1.0), "array"),
    "something new": (lambda m: setattr(m, "more", 2.0), "more"),
    "something taken away": (lambda m: delattr(m, "count"), "count"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_moved_is_told_by_its_place_and_put_back(name: str) -> None:
    change, place = CHANGES[name]
    model = Keeps()
    state = State(model)
    assert state.moved() == {}
    before = model.seen
    change(model)
    assert {describe(key) for key in state.moved()} == {place}
    state.restore()
    assert state.moved() == {}
    assert model.seen is before


def test_changed_parameters_are_told_and_held_ones_are_put_back() -> None:
    model = Keeps()
    state = State(model)
    state.hold(["layer.bias"])
    bias = model.layer.bias.detach().clone()
    with torch.no_grad():
        model.layer.bias += 1
    assert state.changed_parameters() == ["layer.bias"]
    assert state.spoiled_parameters() == []
    state.restore()
    assert torch.equal(model.layer.bias, bias)
    with torch.no_grad():
        model.layer.weight[0, 0] = torch.nan
    assert state.spoiled_parameters() == ["layer.weight"]


def test_a_gradient_and_whether_one_is_required_are_put_back() -> None:
    model = Keeps()
    state = State(model)
    model.layer.weight.grad = torch.ones(2, 2)
    model.layer.bias.requires_grad_(False)
    state.restore()
    assert model.layer.weight.grad is None
    assert model.layer.bias.requires_grad


def test_another_structure_is_told_and_taken_back() -> None:
    model = Keeps()
    state = State(model)
    assert state.other_structure() is None
    model.layer.register_forward_hook(lambda *_: None)
    model.more = nn.Tanh()
    assert state.other_structure() is not None
    state.restore()
    assert state.other_structure() is None
    assert "more" not in dict(model.named_children())


def test_random_numbers_are_the_same_in_each_run_and_as_they_were_afterwards() -> None:
    cpu = [torch.device("cpu")]
    states = torch.get_rng_state(), random.getstate()
    drawn = []
    for _ in range(2):
        with forked_randomness(cpu, 3):
            assert not randomness_used(cpu, 3)
            drawn.append((float(torch.rand(())), float(np.random.rand()), random.random()))
            assert randomness_used(cpu, 3)
    assert drawn[0] == drawn[1]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), lambda: np.random.rand(), random.random])
def test_one_number_of_any_generator_counts_as_drawn(draw: Callable[[], Any]) -> None:
    with forked_randomness([torch.device("cpu")], 3):
        draw()
        assert randomness_used([torch.device("cpu")], 3)


def test_what_threads_keep_in_another_way_after_each_run_of_one_batch_is_said_once() -> None:
    state = State(nn.Linear(1, 1))
    first, second = (("attribute", "local", "other threads", ThreadNumber(n), "kept") for n in range(2))
    assert not state.is_unsteady(first, [{first: 1.0}, {first: 1.0}])
    assert not state.is_unsteady(("attribute", "kept"), [{("attribute", "kept"): 1.0}, {("attribute", "kept"): 2.0}])
    assert state.unread == []
    for samples in ([{first: 1.0}, {first: 2.0}], [{first: 1.0}, {first: 1.0, second: 1.0}]):
        assert state.is_unsteady(first, samples)
    assert len(state.unread) == 1
    assert "local.other threads keep" in state.unread[0]


def test_one_thread_more_that_keeps_the_same_is_no_other_state() -> None:
    place = ("attribute", "local", "other threads", ThreadNumber(0))
    again = (*place, CacheEntry(1), "kept")
    one = {(*place, "kept"): 1.0}
    assert following(one, {**one, again: 1.0}) == []
    assert following({**one, again: 1.0}, {**one, again: 2.0}) == [again]
