"""Rules are asked in the order that `consultation.py` documents, and each may pass a call on to the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Parameters, losses
from measure import captured
from torch import Tensor

from hushgrad.capture import consultation
from hushgrad.capture.operators.table import COMPOSITES, FIRST, RULES
from hushgrad.errors import UncoveredParameterUseError

B, D = 4, 3


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways that were asked for `F.linear`, in order, each of which passes on; the last one runs the call."""
    found: list[str] = []

    def noted(name: str, then: Any = None) -> Any:
        def rule(call: Any, func: Any, args: Any, kwargs: Any, *more: Any) -> Any:
            found.append(name)
            return NotImplemented if then is None else then(call, func, args, kwargs, *more)

        return rule

    monkeypatch.setitem(FIRST, F.linear, noted("first"))
    monkeypatch.setitem(COMPOSITES, F.linear, noted("composite"))
    monkeypatch.setitem(RULES, F.linear, noted("rule"))
    monkeypatch.setattr(consultation, "generic", noted("generic", consultation.generic))
    monkeypatch.setattr(consultation, "derive", noted("derive", consultation.derive))
    return found


def test_a_call_with_data_asks_first_composite_rule_and_generic_in_this_order(asked: list[str]) -> None:
    uses = captured(Parameters(lambda x, w: F.linear(x, w), w=(2, D)), torch.randn(B, D), losses)
    assert asked == ["first", "composite", "rule", "generic"]
    assert set(uses) == {"w"}


def test_a_call_without_data_is_derived(asked: list[str]) -> None:
    captured(Parameters(lambda x, w: x @ F.linear(w, w), w=(D, D)), torch.randn(B, D), losses)
    assert asked == ["first", "derive"]


def test_a_call_with_the_names_of_numpy_goes_to_the_generic_rule_at_once(asked: list[str]) -> None:
    captured(Parameters(lambda x, w: torch.sum(x * w, axis=1), w=(D,)), torch.randn(B, D), lambda out: out.sin())
    assert asked == []  # the product had a rule of its own, and its sum uses no parameter
    captured(Parameters(lambda x, w: torch.cat([x, w.expand(len(x), -1)], axis=1), w=(D,)), torch.randn(B, D), losses)
    assert asked[-1] == "generic"


@pytest.mark.parametrize("read", [lambda w: w.shape, lambda w: w.dtype, lambda w: w.requires_grad, lambda w: w.device])
def test_a_read_that_describes_a_parameter_asks_nobody(asked: list[str], read: Any) -> None:
    def use(x: Tensor, w: Tensor) -> Tensor:
        read(w)
        return x * w

    captured(Parameters(use, w=(D,)), torch.randn(B, D), losses)
    assert asked == []


def test_a_hook_on_a_parameter_is_refused_before_anything_is_derived(asked: list[str]) -> None:
    def use(x: Tensor, w: Tensor) -> Tensor:
        w.register_hook(lambda gradient: None)
        return x * w

    with pytest.raises(UncoveredParameterUseError) as raised:
        captured(Parameters(use, w=(D,)), torch.randn(B, D), losses)
    assert raised.value.cure == "Remove the hook"
    assert asked == []
