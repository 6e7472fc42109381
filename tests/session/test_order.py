"""The protocol of a loop: loader item, backward, optimizer.step. Every other order is refused, and none in silence."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from private_loops import Training
from torch import Tensor, nn

from hushgrad.errors import PrivacyUnitError, ProtocolError
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.session.order import DeclaredOrder, ObservedOrder

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


# Batches that are not what was drawn ---------------------------------------------------------------------------


def test_skipping_a_batch_with_continue_is_refused() -> None:
    """Skipping by looking at the data (a loss that is not finite, say) would make the number of steps depend on it."""
    training = Training(physical=None)
    with pytest.raises(ProtocolError):
        training.run(lambda item: None if training.loss(item) > -1 else training.work(item))
