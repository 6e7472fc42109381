"""Operators without a rule: by slices or by masks, both exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import Parameters, losses
from measure import captured
from oracle import assert_use_is_exact
from torch import Tensor

from hushgrad.capture.operators import replay
from hushgrad.capture.operators.table import COMPOSITES, RULES
from hushgrad.errors import UncoveredParameterUseError

B, D, E, P = 4, 3, 2, 5


def bilinear(x: Tensor, w: Tensor) -> Tensor:
    return F.bilinear(x[:, :D], x[:, D:], w)


@pytest.mark.parametrize("is_sliced", [True, False], ids=["slices", "masks"])
def test_both_ways_to_tell_examples_apart_are_exact(is_sliced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert F.bilinear not in RULES
    assert F.bilinear not in COMPOSITES
    if not is_sliced:
        monkeypatch.setattr(replay, "_by_slices", lambda *_: None)
    assert_use_is_exact(bilinear, torch.randn(B, D + E), w=(P, D, E))


def test_a_value_that_is_not_finite_reaches_its_own_example_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_by_slices", lambda *_: None)
    x = torch.randn(B, D + E)
    x[1, 0] = torch.inf
    uses = captured(Parameters(bilinear, w=(P, D, E)), x, losses)
    gradients = uses["w"][0].per_example()
    assert torch.isfinite(gradients.reshape(B, -1)).all(1).tolist() == [True, False, True, True]


def test_a_call_that_writes_into_an_argument_is_refused() -> None:
    def use(x: Tensor, w: Tensor) -> Tensor:
        return x.clone().addmm_(x, w.expand(x.shape[1], -1))

    with pytest.raises(UncoveredParameterUseError) as raised:
        captured(Parameters(use, w=(D,)), torch.randn(B, D), losses)
    assert raised.value.cure == "Use the form of the operator that returns a new tensor"
