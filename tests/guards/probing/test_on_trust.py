"""What is on trust is said once, in the order in which it came; what a later batch may show is said apart."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

from hushgrad.accounting.conditions import (
    KEPT_BY_DATASET,
    NEVER_EXAMINED,
    ORDER_OF_ROWS,
    VALUES_READ,
    WITHOUT_LOADER,
    not_examined,
)
from hushgrad.guards.probing.loss_programs import LossPrograms
from hushgrad.guards.probing.on_trust import OnTrust
from hushgrad.guards.probing.row_order import PADDING, RowOrder
from hushgrad.guards.probing.scalar_loss import ScalarLoss


class Parts:
    """What is on trust, and those that know some of it."""

    def __init__(self) -> None:
        self.programs, self.row_order = LossPrograms("mean", 4.0), RowOrder()
        self.scalar_loss = ScalarLoss(nn.Linear(1, 1), "mean", lambda: True, nullcontext, self.programs)
        self.on_trust = OnTrust(self.scalar_loss, self.programs, self.row_order)


def test_each_thing_is_said_once_and_what_was_not_examined_last() -> None:
    on_trust = Parts().on_trust
    assert on_trust.conditions == ()
    for _ in range(2):
        on_trust.note(["a part", "another one"])
        on_trust.take(WITHOUT_LOADER)
        on_trust.take(KEPT_BY_DATASET)
    assert on_trust.notes == ("a part", "another one")
    assert on_trust.conditions == (
        WITHOUT_LOADER,
        KEPT_BY_DATASET,
        not_examined("a part"),
        not_examined("another one"),
    )


def test_what_is_said_of_a_loss_of_the_loops_own_comes_first() -> None:
    parts = Parts()
    parts.on_trust.take(WITHOUT_LOADER)
    parts.scalar_loss.doubt("it was cut off")
    first, second = parts.on_trust.conditions
    assert "it was cut off" in first.sentence
    assert second == WITHOUT_LOADER


def test_values_that_the_loop_read_are_settled_at_the_end_of_an_item() -> None:
    parts = Parts()
    parts.on_trust.settle()
    assert parts.on_trust.conditions == ()
    parts.programs.has_read = True
    parts.on_trust.settle()
    parts.programs.has_read = False  # a later item tells nothing of this one
    assert parts.on_trust.conditions == (VALUES_READ,)


def test_what_a_later_batch_may_show_is_open() -> None:
    parts = Parts()
    assert parts.on_trust.open_conditions(is_never_examined=False) == ()
    assert parts.on_trust.open_conditions(is_never_examined=True) == (NEVER_EXAMINED,)
    x = torch.randn(4, 2)
    parts.row_order.expect(x, 4, PADDING)
    assert parts.on_trust.open_conditions(is_never_examined=True) == (NEVER_EXAMINED, ORDER_OF_ROWS)
    with torch.enable_grad():
        parts.row_order.entering(x)
    assert parts.on_trust.open_conditions(is_never_examined=False) == ()
    assert parts.on_trust.conditions == ()
