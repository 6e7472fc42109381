"""Whatever order a loop does things in: no record counts twice in an update, and every update was charged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import HushgradError
from hushgrad.guards.gradient_marks import shows_nothing

RECORDS, BATCH, ITEM = 20, 6, 3

ACTIONS = ("next", "forward", "backward", "old backward", "step", "zero_grad", "discard", "restart")


class AnyLoop:
    """Record i has the gradient e_i, so an update of SGD with a learning rate of 1 shows which records are in it."""

    def __init__(self, poisson: bool, key: int) -> None:
        self.model = nn.Linear(RECORDS, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.engine = PrivacyEngine(test_key=key)
        _, _, self.loader = self.engine.make_private(
            module=self.model,
            optimizer=self.optimizer,
            data_loader=DataLoader(TensorDataset(torch.eye(RECORDS)), batch_size=BATCH),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            loss_reduction="sum",
            poisson_sampling=poisson,
            max_physical_batch_size=ITEM,
        )
        self.items = iter(self.loader)
        self.x: Tensor | None = None
        self.losses: list[Tensor] = []
        self.drawn: set[int] = set()

    def act(self, action: str) -> None:
        session = self.engine.session
        if action == "next":
            (self.x,) = next(self.items)
            batch = session.current_batch
            assert batch is not None
            self.drawn = set(batch.indices) | (set() if batch.first else self.drawn)
        elif action == "forward" and self.x is not None:
            self.losses.append(self.model(self.x).sum())
        elif action == "backward" and self.losses:
            self.losses[-1].backward(retain_graph=True)
        elif action == "old backward" and self.losses:
            self.losses[0].backward(retain_graph=True)
        elif action == "step":
            self.optimizer.step()
        elif action == "zero_grad":
            self.optimizer.zero_grad()
        elif action == "discard":
            session.discard()
        elif action == "restart":
            self.items = iter(self.loader)


ORDERS = given(
    actions=st.lists(
        # Mostly what a right loop does, so that updates come about.
        st.one_of(
            st.just(("next", "forward", "backward", "step")),
            st.lists(st.sampled_from(ACTIONS[1:4]), max_size=3).map(lambda middle: ("next", *middle, "step")),
            st.sampled_from(ACTIONS).map(lambda one: (one,)),
        ),
        min_size=2,
        max_size=20,
    ),
    poisson=st.booleans(),
    key=st.integers(0, 50),
)


@settings(max_examples=80, deadline=None)
@ORDERS
def test_an_update_holds_each_record_of_its_logical_batch_at_most_once_and_no_other(
    actions: list[tuple[str, ...]], poisson: bool, key: int
) -> None:
    """Guarantee: an update happens only after its charge is recorded."""
    require_true_updates(actions, poisson, key)


@pytest.mark.slow
@settings(max_examples=800, deadline=None)
@ORDERS
def test_an_update_holds_each_record_once_in_many_more_orders(
    actions: list[tuple[str, ...]], poisson: bool, key: int
) -> None:
    require_true_updates(actions, poisson, key)


def require_true_updates(actions: list[tuple[str, ...]], poisson: bool, key: int) -> None:
    loop = AnyLoop(poisson, key)
    for action in (one for several in actions for one in several):
        before, charged = loop.model.weight.detach().clone(), loop.engine.session.steps
        try:
            loop.act(action)
        except (HushgradError, StopIteration):
            pass
        except RuntimeError as error:  # torch's own refusal to go back through parameters that were updated since
            assert "inplace operation" in str(error)  # noqa: PT017
        released = loop.engine.session.steps - charged
        assert shows_nothing(loop.model.weight)
        assert released in (0, 1)
        update: Any = (before - loop.model.weight.detach()).flatten()
        assert released == 1 or not update.any()
        held = {record for record in range(RECORDS) if update[record] != 0}
        assert held <= loop.drawn
        torch.testing.assert_close(update[sorted(held)], torch.ones(len(held)))
        if released:
            assert loop.engine.last_step_updated


def test_the_right_loop_updates_with_exactly_its_logical_batch() -> None:
    loop = AnyLoop(poisson=True, key=3)
    updates = 0
    for _ in range(12):
        before = loop.model.weight.detach().clone()
        try:
            for action in ("next", "forward", "backward", "step"):
                loop.act(action)
        except StopIteration:
            break
        if loop.engine.last_step_updated:
            update = (before - loop.model.weight.detach()).flatten()
            assert {record for record in range(RECORDS) if update[record] != 0} == loop.drawn
            updates += 1
    assert updates == len(loop.loader)
