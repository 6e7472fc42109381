"""A step that a Ctrl-C ends keeps nothing of the user's alive, and is not taken for the one that follows."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from private_loops import Training
from torch import Tensor, nn

from hushgrad.errors import ProtocolError, UnsupportedOptimizerError
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
        self.failures: list[Exception] = []
        names = ("start", "prepare", "finish", "abandon")
        self.hooks = StepHooks(
            self.optimizer, failed=self.failures.append, **{name: self._note(name) for name in names}
        )

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


@pytest.mark.parametrize("as_keyword", [True, False])
@pytest.mark.parametrize("physical", [None, 3])
def test_a_closure_is_evaluated_once_and_trains_as_the_plain_loop_does(as_keyword: bool, physical: int | None) -> None:
    plain, closed = Training(physical=physical), Training(physical=physical)
    closed.model.load_state_dict(plain.model.state_dict())
    closed.loader.dataset.tensors = plain.loader.dataset.tensors
    for item in plain.loader:
        plain.work(item)
    evaluations = 0
    for item in closed.loader:

        def closure(item: Any = item) -> Tensor:
            nonlocal evaluations
            evaluations += 1
            closed.optimizer.zero_grad()
            loss = closed.loss(item)
            loss.backward()
            return loss

        returned = closed.optimizer.step(closure=closure) if as_keyword else closed.optimizer.step(closure)
        assert isinstance(returned, Tensor)
        assert closed.gradients() == [None] * 4
    assert plain.is_as(closed.values())
    assert evaluations == 3 * (1 if physical is None else 3)


class TwoEvaluations(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            closure()
            return closure()


def test_an_optimizer_that_evaluates_its_closure_twice_is_refused() -> None:
    training = Training(physical=None, optimizer=lambda p: TwoEvaluations(p, lr=0.1))
    before = training.values()
    item = next(iter(training.loader))

    def closure() -> Tensor:
        loss = training.loss(item)
        loss.backward()
        return loss

    with pytest.raises(UnsupportedOptimizerError, match="more than once"):
        training.optimizer.step(closure)
    assert training.is_as(before)
    assert training.gradients() == [None] * 4


class NeverEvaluates(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return None


def test_an_optimizer_that_ignores_its_closure_updates_nothing_and_is_refused_at_the_next_item() -> None:
    training = Training(physical=None, optimizer=lambda p: NeverEvaluates(p, lr=0.1))
    items = iter(training.loader)
    item = next(items)
    training.optimizer.step(lambda: training.loss(item).backward())
    assert not training.engine.last_step_updated
    with pytest.raises(ProtocolError):
        next(items)


class OwnStep(torch.optim.SGD):
    """Calls its parent's step, which torch hooks as well once an ordinary SGD was made."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        assert all(p.grad is not None for group in self.param_groups for p in group["params"])
        return result


@pytest.mark.parametrize("with_closure", [True, False])
def test_an_optimizer_whose_step_calls_its_parents_steps_once(with_closure: bool) -> None:
    """Guarantee: one call of `optimizer.step()` prepares one update, also where the step calls its parent's."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    plain = Training(physical=None)
    training = Training(physical=None, optimizer=lambda p: OwnStep(p, lr=0.1))
    training.model.load_state_dict(plain.model.state_dict())
    training.loader.dataset.tensors = plain.loader.dataset.tensors
    for item in plain.loader:
        plain.work(item)
    for item in training.loader:
        if with_closure:
            training.optimizer.step(lambda item=item: training.loss(item).backward())
        else:
            training.work(item)
    assert training.session.steps == 3
    assert training.is_as(plain.values())
    assert training.gradients() == [None] * 4


class DecaysAlways(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            torch._foreach_mul_(group["params"], 0.99)


def test_an_optimizer_that_updates_without_gradients_shows_the_number_of_physical_batches_and_is_refused() -> None:
    training = Training(optimizer=lambda p: DecaysAlways(p, lr=0.1))
    with pytest.raises(UnsupportedOptimizerError, match="physical batches"):
        training.work(next(iter(training.loader)))
    alone = Training(physical=None, optimizer=lambda p: DecaysAlways(p, lr=0.1))
    alone.run(alone.work)
    assert alone.session.steps == 3


class Breaks(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise FloatingPointError("the optimizer's own")


def test_an_exception_in_the_optimizers_own_step_is_charged_and_leaves_no_gradient_behind() -> None:
    training = Training(physical=None, noise_multiplier=1.0, optimizer=lambda p: Breaks(p, lr=0.1))
    items = iter(training.loader)
    with pytest.raises(FloatingPointError):
        training.work(next(items))
    assert training.session.steps == 1
    item = next(items)
    assert training.gradients() == [None] * 4
    with pytest.raises(FloatingPointError):
        training.work(item)
    with pytest.raises(ProtocolError):
        training.optimizer.step()
    assert training.gradients() == [None] * 4
    assert training.session.steps == 2


def test_a_grad_scaler_is_refused_with_a_fused_optimizer() -> None:
    training = Training(physical=None, optimizer=lambda p: torch.optim.Adam(p, lr=0.1, fused=True))
    scaler = torch.amp.GradScaler("cpu")
    before = training.values()
    scaler.scale(training.loss(next(iter(training.loader)))).backward()
    with pytest.raises(UnsupportedOptimizerError, match="GradScaler"):
        scaler.step(training.optimizer)
    assert training.is_as(before)


@pytest.mark.parametrize("clips", [False, True])
def test_a_grad_scaler_is_refused_with_every_optimizer(clips: bool) -> None:
    training = Training(physical=None)
    scaler = torch.amp.GradScaler("cpu")
    before = training.values()
    scaler.scale(training.loss(next(iter(training.loader)))).backward()
    if clips:
        scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
    with pytest.raises(UnsupportedOptimizerError, match="GradScaler"):
        scaler.step(training.optimizer)
    assert training.is_as(before)
    assert training.session.steps == 0


def test_a_disabled_grad_scaler_is_an_ordinary_loop() -> None:
    training = Training(physical=None)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for item in training.loader:
        scaler.scale(training.loss(item)).backward()
        scaler.step(training.optimizer)
        scaler.update()
    assert training.session.steps == 3


@pytest.mark.parametrize("part", ["_start", "_prepare", "_finish", "closure"])
def test_whatever_raises_in_a_step_is_told_and_raised_on(part: str) -> None:
    told = Told()
    told.optimizer.calls_parent = True

    def fail() -> None:
        raise ArithmeticError(part)

    if part != "closure":
        setattr(told.hooks, part, fail)
    with pytest.raises(ArithmeticError, match=part) as raised:
        told.optimizer.step(fail if part == "closure" else None)
    assert told.failures == [raised.value]
