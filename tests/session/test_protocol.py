"""The protocol of a loop: loader item, backward, optimizer.step. Every other order is refused, and none in silence."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from hushgrad import FlatClipping, PrivacyEngine
from hushgrad.errors import (
    ClosedSessionError,
    ContractChangedError,
    CrossSampleLeakError,
    PrivacyUnitError,
    ProtocolError,
    StrayGradientError,
    UncoveredParameterUseError,
    UnsupportedOptimizerError,
)
from hushgrad.guards.gradient_marks import shows_nothing
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.session.order import DeclaredOrder, ObservedOrder


class Training:
    """A private loop over 24 records in disjoint batches of 8, items of 3, 3 and 2 records; no noise, no clipping."""

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        optimizer: Callable[[Any], Any] = lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        physical: int | None = 3,
        noise_multiplier: float = 0.0,
        batch_size: int = 8,
    ) -> None:
        self.model = model or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.optimizer = optimizer([p for p in self.model.parameters() if p.requires_grad])
        self.engine = PrivacyEngine()
        _, _, self.loader = self.engine.make_private(
            module=self.model,
            optimizer=self.optimizer,
            data_loader=DataLoader(TensorDataset(torch.randn(24, 3), torch.randn(24, 2)), batch_size=batch_size),
            noise_multiplier=noise_multiplier,
            max_grad_norm=1e6,
            poisson_sampling=False,
            max_physical_batch_size=physical,
        )
        self.session = self.engine.session

    def loss(self, item: Any) -> Tensor:
        return nn.functional.mse_loss(self.model(item[0]), item[1])

    def work(self, item: Any) -> None:
        self.loss(item).backward()
        self.optimizer.step()

    def run(self, body: Callable[[Any], None]) -> None:
        for item in self.loader:
            body(item)

    def run_rest(self, items: Iterator[Any]) -> None:
        for item in items:
            self.work(item)

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def gradients(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self.model.parameters()]

    def is_as(self, values: list[Tensor]) -> bool:
        return all(torch.equal(own, value) for own, value in zip(self.values(), values, strict=True))


# The state machine by itself -----------------------------------------------------------------------------------


def batch(step: int, *, first: bool, last: bool) -> PhysicalBatch:
    return PhysicalBatch((1, 2), 2, 1.0, step, 0, first=first, last=last)


def test_an_observed_loop_accepts_items_in_order() -> None:
    loop = ObservedOrder()
    for step in range(2):
        for first, last in ((True, False), (False, False), (False, True)):
            loop.before_draw()
            loop.begin(batch(step, first=first, last=last))
            loop.require_item()
            loop.end_item()
        assert loop.end_logical_batch().step == step


@pytest.mark.parametrize("lasts", list(itertools.product([False, True], repeat=3)))
def test_an_observed_loop_refuses_every_item_that_does_not_follow_the_last_one(lasts: tuple[bool, ...]) -> None:
    """Brute force: an item is accepted if it begins a logical batch and none is open, or continues the open one."""
    for firsts in itertools.product([False, True], repeat=3):
        loop, step, is_open = ObservedOrder(), 0, False
        for first, last in zip(firsts, lasts, strict=True):
            step += first
            if first == is_open:
                with pytest.raises(ProtocolError):
                    loop.begin(batch(step, first=first, last=last))
                break
            loop.begin(batch(step, first=first, last=last))
            with pytest.raises(ProtocolError, match="for the last one"):
                loop.before_draw()
            loop.end_item()
            if last:
                with pytest.raises(ProtocolError, match="for a logical batch"):
                    loop.before_draw()
                loop.end_logical_batch()
            is_open = not last


def test_a_discarded_logical_batch_cannot_be_continued() -> None:
    loop = ObservedOrder()
    loop.begin(batch(0, first=True, last=False))
    loop.discard()
    loop.before_draw()
    with pytest.raises(ProtocolError, match="after it was discarded"):
        loop.begin(batch(0, first=False, last=True))
    loop.begin(batch(1, first=True, last=True))


def test_a_declared_loop_needs_a_backward_for_a_step_and_none_that_failed() -> None:
    loop = DeclaredOrder()
    with pytest.raises(ProtocolError, match="without a backward"):
        loop.end_logical_batch()
    loop.start_backward()
    for out_of_turn in (loop.end_logical_batch, loop.start_backward):
        with pytest.raises(ProtocolError, match="did not end"):
            out_of_turn()
    loop.discard()
    loop.start_backward()
    loop.end_backward()
    assert not loop.is_new
    loop.end_logical_batch()
    assert loop.is_new


# Wrong loops ---------------------------------------------------------------------------------------------------


def test_the_next_item_without_a_step_is_refused() -> None:
    training = Training()
    with pytest.raises(ProtocolError, match=r"before optimizer\.step"):
        training.run(lambda item: training.loss(item).backward())
    assert training.session.steps == 0


def test_reading_items_without_training_on_them_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"session\.discard"):
        list(Training().loader)


def test_a_step_without_a_backward_is_refused_and_changes_nothing() -> None:
    training = Training()
    before = training.values()
    with pytest.raises(ProtocolError, match="no batch to work on"):
        training.optimizer.step()
    next(iter(training.loader))
    with pytest.raises(ProtocolError, match="no backward has finished"):
        training.optimizer.step()
    assert training.is_as(before)
    assert training.session.steps == 0


def test_a_second_step_for_one_item_is_refused() -> None:
    training = Training(physical=None)
    training.work(next(iter(training.loader)))
    after = training.values()
    with pytest.raises(ProtocolError, match="ended already"):
        training.optimizer.step()
    assert training.is_as(after)
    assert training.session.steps == 1


def test_a_backward_after_the_step_is_refused() -> None:
    training = Training(physical=None)
    item = next(iter(training.loader))
    training.work(item)
    with pytest.raises(PrivacyUnitError):
        training.loss(item).backward()
    assert training.gradients() == [None] * 4


def test_a_backward_into_the_graph_of_an_earlier_batch_is_refused() -> None:
    """The classic of `total += loss; total.backward(retain_graph=True)`: its examples would count again."""
    training = Training()  # two items of 3 records in one logical batch, so the parameters are still the same
    total: list[Tensor] = []

    def body(item: Any) -> None:
        total.append(training.loss(item))
        sum(total).backward(retain_graph=True)
        training.optimizer.step()

    with pytest.raises(PrivacyUnitError):
        training.run(body)
    assert len(total) == 2
    assert training.session.steps == 0


def test_leaving_the_middle_of_a_logical_batch_and_iterating_again_is_refused_until_it_is_discarded() -> None:
    training = Training()
    for item in training.loader:
        training.work(item)
        break
    with pytest.raises(ProtocolError, match=r"session\.discard\(\)"):
        next(iter(training.loader))
    training.session.discard()
    before = training.values()
    for item in training.loader:
        training.work(item)
        if training.engine.last_step_updated:
            break
    assert training.session.steps == 1
    assert not training.is_as(before)


def test_what_was_discarded_is_not_in_the_next_update() -> None:
    torch.manual_seed(3)
    model = nn.Linear(3, 2)
    updates = []
    for leave_first in (False, True):
        torch.manual_seed(4)
        training = Training(model=copy.deepcopy(model))
        if leave_first:
            for item in training.loader:
                training.work(item)
                break
            training.session.discard()
        for item in training.loader:
            training.work(item)
            if training.engine.last_step_updated:
                break
        updates.append(training.values())
    for first, second in zip(*updates, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_discard_drops_the_sums_at_once() -> None:
    training = Training()
    training.work(next(iter(training.loader)))
    assert training.session._parts.update._sums
    training.session.discard()
    assert not training.session._parts.update._sums


def test_an_interrupt_between_a_logical_batch_and_its_release_carries_no_sum_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Examples of the interrupted batch in the next update would double what one record may change."""
    interrupted, calm = Training(physical=None), Training(physical=None)
    calm.model.load_state_dict(interrupted.model.state_dict())
    calm.loader.dataset.tensors = interrupted.loader.dataset.tensors

    def release(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hushgrad.session.session.release", release)
        items = iter(interrupted.loader)
        with pytest.raises(KeyboardInterrupt):
            interrupted.work(next(items))
    interrupted.work(next(iter(interrupted.loader)))
    calm.work(next(iter(calm.loader)))
    assert interrupted.is_as(calm.values())


@pytest.mark.parametrize("before", [True, False])
def test_an_item_whose_step_was_interrupted_while_it_was_added_is_never_added_twice(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training()
    add = training.session._parts.update.add
    x = next(iter(training.loader))

    def interrupted(*arguments: Any) -> None:
        if not before:
            add(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.session._parts.update, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            training.work(x)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="twice"):
            training.work(x)
    with pytest.raises(ProtocolError):
        next(iter(training.loader))
    training.session.discard()
    training.work(next(iter(training.loader)))
    assert training.session.steps == 0


def test_a_discarded_logical_batch_is_told_beside_epsilon() -> None:
    training = Training(noise_multiplier=1.0)
    training.session.discard()  # nothing was drawn
    assert "discarded" not in str(training.engine.guarantee(1e-5))
    for _ in range(2):
        next(iter(training.loader))
        training.session.discard()
    assert "2 logical batches were discarded" in str(training.engine.guarantee(1e-5))


def test_an_interrupt_after_an_items_step_blames_no_later_step() -> None:
    training = Training()
    items = iter(training.loader)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = training.optimizer.register_step_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        training.work(next(items))
    handle.remove()
    training.run_rest(items)
    assert training.session.steps == 3


def test_discard_keeps_the_charge_and_an_iterator_in_the_middle_ends() -> None:
    training = Training()
    items = iter(training.loader)
    for _ in range(4):  # one whole logical batch of three items, and the first item of the next
        training.work(next(items))
    assert training.session.steps == 1
    training.session.discard()
    assert training.session.steps == 1
    with pytest.raises(ProtocolError, match="after it was discarded"):
        next(items)


def test_two_iterators_over_one_loader_are_refused() -> None:
    training = Training(physical=None)
    first = iter(training.loader)
    training.work(next(first))
    training.work(next(iter(training.loader)))
    with pytest.raises(ProtocolError):
        next(first)


def test_several_backwards_over_one_item_add_up_per_example_before_clipping() -> None:
    halves, whole = Training(physical=None), Training(physical=None)
    whole.model.load_state_dict(halves.model.state_dict())
    for training in (halves, whole):
        training.session._parts.update._mechanism = _clipping_at(training.session.mechanism, 0.05)
    x, y = next(iter(halves.loader))
    next(iter(whole.loader))
    for part in (slice(0, 1), slice(1, 2)):
        (halves.model(x)[:, part] - y[:, part]).square().sum(1).mean().backward()
    (whole.model(x) - y).square().sum(1).mean().backward()
    for training in (halves, whole):
        training.optimizer.step()
    for ours, theirs in zip(halves.values(), whole.values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def _clipping_at(mechanism: Any, norm: float) -> Any:
    return replace(mechanism, clipping=FlatClipping(norm))


def test_a_loader_of_a_closed_session_is_refused() -> None:
    training = Training()
    training.session.close()
    with pytest.raises(ClosedSessionError):
        next(iter(training.loader))
    with pytest.raises(ClosedSessionError):
        training.session.backward(torch.zeros(1, requires_grad=True))


# Gradients that nobody may see, or write -----------------------------------------------------------------------


def test_grad_shows_nothing_from_backward_to_the_end_of_the_logical_batch_and_is_none_after_every_step() -> None:
    training = Training(noise_multiplier=1.0)
    seen: list[bool] = []
    training.optimizer.register_step_pre_hook(
        lambda *_: seen.append(all(gradient is not None for gradient in training.gradients()))
    )
    for item in training.loader:
        training.loss(item).backward()
        assert all(shows_nothing(parameter) for parameter in training.model.parameters())
        training.optimizer.step()
        assert training.gradients() == [None] * 4
        assert seen[-1] == training.engine.last_step_updated
    assert seen == [False, False, True] * 3


def test_parameters_stay_as_they_are_until_the_logical_batch_ends() -> None:
    training = Training(noise_multiplier=1.0, optimizer=lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1))
    before = training.values()
    for item in training.loader:
        training.work(item)
        if training.engine.last_step_updated:
            assert not training.is_as(before)
            before = training.values()
        assert training.is_as(before)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_before_a_backward_and_after_a_step_is_harmless(set_to_none: bool) -> None:
    calm, nervous = Training(), Training()
    nervous.model.load_state_dict(calm.model.state_dict())
    nervous.loader.dataset.tensors = calm.loader.dataset.tensors
    for item in calm.loader:
        calm.work(item)
    for item in nervous.loader:
        nervous.optimizer.zero_grad(set_to_none)
        loss = nervous.loss(item)
        nervous.model.zero_grad(set_to_none)
        loss.backward()
        nervous.optimizer.step()
        nervous.optimizer.zero_grad(set_to_none)
    assert calm.is_as(nervous.values())


def test_a_stray_ordinary_gradient_raises_and_names_the_parameter() -> None:
    training = Training()
    before = training.values()
    item = next(iter(training.loader))
    (training.loss(item) + training.model[2].weight.square().sum()).backward()
    with pytest.raises(StrayGradientError, match=r"2\.weight") as caught:
        training.optimizer.step()
    assert "0.weight" not in str(caught.value)
    assert training.is_as(before)
    assert training.session.steps == 0


def test_a_gradient_written_by_hand_raises() -> None:
    training = Training()
    training.loss(next(iter(training.loader))).backward()
    training.model[0].bias.grad = torch.ones(4)
    with pytest.raises(StrayGradientError, match=r"0\.bias"):
        training.optimizer.step()


def test_a_gradient_left_on_a_frozen_parameter_of_the_optimizer_raises() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    training = Training(model=model, optimizer=lambda _: torch.optim.SGD(model.parameters(), lr=0.1))
    item = next(iter(training.loader))
    model[0].weight.requires_grad_(True)
    model[0].weight.sum().backward()
    model[0].weight.requires_grad_(False)
    training.loss(item).backward()
    with pytest.raises(StrayGradientError, match=r"0\.weight"):
        training.optimizer.step()


# What was fixed at set-up --------------------------------------------------------------------------------------


def test_a_parameter_unfrozen_after_make_private_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    training = Training(model=model, optimizer=lambda _: torch.optim.SGD(model.parameters(), lr=0.1))
    before = training.values()
    model[0].weight.requires_grad_(True)
    with pytest.raises(ContractChangedError, match=r"0\.weight"):
        training.work(next(iter(training.loader)))
    assert training.is_as(before)


def test_a_parameter_frozen_for_a_while_keeps_its_value_and_is_trained_again_afterwards() -> None:
    training = Training()
    bias = training.model[0].bias
    values = []
    for trainable, item in zip((True, False, True), training.loader, strict=False):
        bias.requires_grad_(trainable)
        training.work(item)
        values.append(bias.detach().clone())
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[1], values[2])


def test_a_model_that_is_frozen_altogether_takes_no_step() -> None:
    training = Training()
    item = next(iter(training.loader))
    training.loss(item).backward()
    training.model.requires_grad_(False)
    with pytest.raises(ContractChangedError, match="no longer trainable"):
        training.optimizer.step()


def test_a_layer_replaced_after_make_private_is_refused() -> None:
    training = Training()
    training.model[2] = nn.Linear(4, 2)
    with pytest.raises(ContractChangedError, match=r"2\.weight"):
        training.work(next(iter(training.loader)))


def test_a_param_group_added_after_make_private_is_refused() -> None:
    training = Training()
    training.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(ContractChangedError, match="param_groups"):
        training.work(next(iter(training.loader)))


def test_a_batch_norm_put_back_into_train_mode_is_refused() -> None:
    """`model.train()` at the top of an epoch also wakes the frozen statistics of a backbone without parameters."""
    backbone = nn.BatchNorm1d(3, affine=False).eval()
    head = nn.Linear(3, 2)
    training = Training(model=nn.Sequential(backbone, head))
    training.model.train()
    x, y = next(iter(training.loader))
    nn.functional.mse_loss(head(backbone(x)), y).backward()
    with pytest.raises(CrossSampleLeakError, match="DP301 0: BatchNorm"):
        training.optimizer.step()


def test_loading_an_optimizers_state_is_no_change_of_contract() -> None:
    training = Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.1))
    items = iter(training.loader)
    for _ in range(3):
        training.work(next(items))
    training.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
    for item in items:
        training.work(item)
    assert training.session.steps == 3


# Learning-rate schedules ---------------------------------------------------------------------------------------


def test_a_schedule_that_steps_inside_a_logical_batch_is_refused() -> None:
    training = Training()
    schedule = torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.9)
    with pytest.raises(ContractChangedError, match="last_step_updated"):
        training.run(lambda item: (training.work(item), schedule.step()))


def test_a_schedule_guarded_by_last_step_updated_steps_once_per_logical_batch() -> None:
    training = Training()
    schedule = torch.optim.lr_scheduler.OneCycleLR(training.optimizer, max_lr=0.1, total_steps=10)
    for item in training.loader:
        training.work(item)
        if training.engine.last_step_updated:
            schedule.step()
    assert schedule.last_epoch == len(training.loader) == 3


def test_a_schedule_steps_freely_where_every_item_is_a_logical_batch() -> None:
    training = Training(physical=None)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, 3)
    for item in training.loader:
        training.work(item)
        schedule.step()
    assert training.session.steps == 3


# Closures, and optimizers with a step of their own -------------------------------------------------------------


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


def test_clip_grad_norm_between_backward_and_step_sees_and_changes_nothing() -> None:
    plain, clipped = Training(physical=None), Training(physical=None)
    clipped.model.load_state_dict(plain.model.state_dict())
    clipped.loader.dataset.tensors = plain.loader.dataset.tensors
    for item in plain.loader:
        plain.work(item)
    for item in clipped.loader:
        clipped.loss(item).backward()
        norm = nn.utils.clip_grad_norm_(clipped.model.parameters(), 1e-3)
        assert norm == 0
        nn.utils.clip_grad_value_(clipped.model.parameters(), 1e-3)
        clipped.optimizer.step()
    assert plain.is_as(clipped.values())


# Batches that are not what was drawn ---------------------------------------------------------------------------


def _items(training: Training) -> Iterator[Any]:
    return iter(training.loader)


@pytest.mark.parametrize(
    "change",
    [lambda t: t[:4], lambda t: torch.cat([t, t]), lambda t: t[:1].expand(7, *t.shape[1:])],
    ids=["a part of the batch", "every record twice", "another number of rows"],
)
def test_a_forward_on_other_rows_than_the_item_has_is_refused(change: Callable[[Tensor], Tensor]) -> None:
    training = Training(physical=None)
    x, y = next(_items(training))
    with pytest.raises(PrivacyUnitError):
        training.work((change(x), change(y)))
    assert training.session.steps == 0


def test_skipping_a_batch_with_continue_is_refused() -> None:
    """Skipping by looking at the data (a loss that is not finite, say) would make the number of steps depend on it."""
    training = Training(physical=None)
    with pytest.raises(ProtocolError):
        training.run(lambda item: None if training.loss(item) > -1 else training.work(item))


def test_an_empty_draw_is_a_step_of_noise_alone() -> None:
    """Poisson with an expected size of 1 draws nothing in e^-1 of the steps: 60 steps without one have probability
    1e-12."""
    model = nn.Linear(3, 2)
    engine = PrivacyEngine(test_key=5)
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(TensorDataset(torch.ones(60, 3)), batch_size=1),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
    )
    empty = 0
    for (x,) in loader:
        before = model.weight.detach().clone()
        model(x).sum(1).mean().backward()
        drawn = engine.session.current_batch
        assert drawn is not None
        optimizer.step()
        assert torch.equal(before, model.weight) == (drawn.weight == 0)
        empty += drawn.weight == 0
    assert empty > 0
    assert engine.session.steps == 60


# Examples mixed inside the model -----------------------------------------------------------------------------------


class Mixes(nn.Module):
    """A layer, and something done to its output."""

    def __init__(self, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.layer(x))


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "the batch's mean taken off": lambda h: h - h.mean(0),
    "divided by the batch's maximum": lambda h: h / h.max(),
    "a softmax over the batch": lambda h: h.softmax(0),
    "another order": lambda h: h[torch.randperm(len(h))],
    "distances to each other": lambda h: torch.cdist(h, h)[:, :2],
}


@pytest.mark.parametrize("name", MIXING)
def test_examples_mixed_after_the_last_parameter_are_refused(name: str) -> None:
    training = Training(model=Mixes(MIXING[name]), physical=None)
    item = next(iter(training.loader))
    with pytest.raises(PrivacyUnitError, match="an output of the model"):
        training.work(item)
    assert training.session.steps == 0


def test_a_statistic_of_the_batch_beside_the_output_may_be_looked_at() -> None:
    """Only a backward through it is refused: what has no row for each example harms nobody in itself."""
    training = Training(model=Mixes(lambda h: (h, {"mean": h.mean(0)})), physical=None)
    for x, y in training.loader:
        output, others = training.model(x)
        torch.autograd.grad(others["mean"].sum(), others["mean"], retain_graph=True)
        nn.functional.mse_loss(output, y).backward()
        training.optimizer.step()
    assert training.session.steps == 3


def test_an_output_that_mixes_examples_is_refused_also_where_no_gradient_comes_back_through_it() -> None:
    """Its values may reach the loss as a target or a weight, where nobody sees it (a teacher's centred outputs)."""
    training = Training(model=Mixes(lambda h: (h, {"centred": (h - h.mean(0)).detach()})), physical=None)
    x, y = next(iter(training.loader))
    output, others = training.model(x)
    nn.functional.mse_loss(output, y + others["centred"]).backward()
    with pytest.raises(CrossSampleLeakError, match="mixes the examples"):
        training.optimizer.step()
    assert training.session.steps == 0


def test_a_model_that_returns_its_scalar_loss_is_trained() -> None:
    training = Training(model=Mixes(lambda h: h.square().sum(1).mean()), physical=None)
    for x, _ in training.loader:
        training.model(x).backward()
        training.optimizer.step()
    assert training.session.steps == 3


@pytest.mark.parametrize(
    "after",
    [
        lambda h: h.log_softmax(1),
        lambda h: nn.functional.normalize(h, dim=1),
        lambda h: h[:, :1].squeeze(1),
        lambda h: h.view(h.shape[0], 2, 1),
        lambda h: h - h.mean(1, keepdim=True),
        lambda h: h.clamp(-1, 1).topk(1).values,
        lambda h: torch.where(h > 0, h, 0.1 * h),
        lambda h: torch.stack([h, h]).sum(0).tanh().logsumexp(1),
    ],
)
def test_what_keeps_the_examples_apart_is_not_refused(after: Callable[[Tensor], Tensor]) -> None:
    training = Training(model=Mixes(after), physical=None)
    for x, _ in training.loader:
        training.model(x).reshape(x.shape[0], -1).sum(1).mean().backward()
        training.optimizer.step()
    assert training.session.steps == 3


class Positions(nn.Module):
    """A position embedding, whose result is made of parameters alone, and a layer."""

    def __init__(self, hook: Any = None) -> None:
        super().__init__()
        self.positions, self.layer, self.hook = nn.Embedding(3, 3), nn.Linear(3, 2), hook

    def forward(self, x: Tensor) -> Tensor:
        places = self.positions(torch.arange(3)[None])
        if self.hook is not None:
            places.register_hook(self.hook)
        return self.layer(x + places.sum(1))


def test_counting_the_operations_of_a_private_step_with_torchs_own_counter_changes_nothing() -> None:
    """FlopCounterMode hangs hooks that only look on what goes into modules and comes out of them."""
    training = Training(model=Positions(), physical=None)
    for x, y in training.loader:
        with FlopCounterMode(display=False) as counter:
            nn.functional.mse_loss(training.model(x), y).backward()
            training.optimizer.step()
        assert counter.get_total_flops() > 0
    assert training.session.steps == 3


def test_a_hook_that_may_change_the_gradient_of_a_derived_parameter_is_refused() -> None:
    training = Training(model=Positions(hook=lambda gradient: gradient * 2), physical=None)
    x, _ = next(iter(training.loader))
    with pytest.raises(UncoveredParameterUseError, match="Remove the hook"):
        training.model(x)
