"""The model that comes back is the model that went in, after its first forward; and what it made must hold no batch."""

from __future__ import annotations

import copy

import pytest
import torch
from first_forwards import BATCH, CLASSES, READY, WIDTH, Body, held, train
from torch import Tensor, nn

from hushgrad import doctor


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
