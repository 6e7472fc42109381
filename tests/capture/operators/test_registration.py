"""Operators are registered once, with both of their rules, and what torch lacks is an error at import."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hushgrad.capture.axes.rules import elementwise
from hushgrad.capture.axes.table import AXIS_RULES
from hushgrad.capture.operators.registration import asked_first, captures, opens
from hushgrad.capture.operators.table import COMPOSITES, FIRST, RULES
from hushgrad.errors import InvalidArgumentError
from hushgrad.torch_internals import GROUPED_MM

FOLLOWED_ELSEWHERE = {Tensor.__setitem__, torch.autograd.grad, torch.autograd.backward, Tensor.backward, GROUPED_MM}
"""Rules without an axis rule: the mode follows what is written itself, gradients of gradients are refused, and groups
of rows are followed with the order they are in (`selections.py`)."""


def rule(call: Any, func: Any, args: Any, kwargs: Any) -> Any:
    return NotImplemented


def mine() -> None:
    """Stands for an operator that no rule knows."""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the tables as they are: what a test registers is taken out again."""
    for table in (RULES, COMPOSITES, FIRST, AXIS_RULES):
        monkeypatch.setitem(table, mine, None)  # type: ignore[arg-type]
        del table[mine]


def test_an_operator_has_its_capture_rule_and_its_axis_rule_in_one_place() -> None:
    assert captures(mine, axis=elementwise)(rule) is rule
    assert RULES[mine] is rule
    assert AXIS_RULES[mine] is elementwise


@pytest.mark.parametrize("register", [captures, opens])
@pytest.mark.parametrize("known", [torch.addmm, torch.lstm, torch.sin], ids=["captured", "opened", "followed"])
def test_an_operator_that_is_registered_twice_raises_at_import_and_changes_nothing(register: Any, known: Any) -> None:
    before = [dict(table) for table in (RULES, COMPOSITES, AXIS_RULES)]
    with pytest.raises(InvalidArgumentError, match="has a rule already"):
        register(mine, known, axis=elementwise)(rule)
    assert before == [RULES, COMPOSITES, AXIS_RULES]


def test_what_is_asked_first_is_registered_once() -> None:
    with pytest.raises(InvalidArgumentError, match="has a rule already"):
        asked_first(torch.nn.functional.batch_norm)(rule)


def test_every_captured_operator_is_followed() -> None:
    assert set(RULES) - set(AXIS_RULES) == FOLLOWED_ELSEWHERE
    assert set(COMPOSITES) <= set(AXIS_RULES)
    assert not set(RULES) & set(COMPOSITES)
