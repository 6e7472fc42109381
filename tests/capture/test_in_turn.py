"""Uses are handed on parameter by parameter, each once, with all its uses."""

from __future__ import annotations

import pytest
import torch

from hushgrad.capture.in_turn import InTurn
from hushgrad.errors import UncoveredParameterUseError
from hushgrad.gradients.contribution import Contribution
from hushgrad.gradients.dense import Dense


def use() -> Contribution:
    return Dense(torch.ones(1, 2))


def test_a_parameter_is_handed_on_as_its_last_call_ends() -> None:
    """Guarantee: each parameter is handed on once, with all its uses; one that comes later is refused."""
    taken: list[tuple[str, int]] = []
    turn = InTurn({"a": 1, "b": 2}, lambda name, parts: taken.append((name, len(parts))))
    turn.add("b", use())
    turn.call_ended(["b"])
    assert taken == []
    turn.add("a", use())
    turn.add("a", use())  # one call may use a parameter twice
    assert taken == []
    turn.call_ended(["a"])
    assert taken == [("a", 2)]
    turn.add("b", use())
    turn.call_ended(["b"])
    assert taken == [("a", 2), ("b", 2)]
    turn.finish()
    assert len(taken) == 2
    with pytest.raises(UncoveredParameterUseError, match=r"a use came that no forward had announced.*use_reentrant"):
        turn.add("a", use())


def test_what_fewer_calls_used_than_were_announced_is_handed_on_at_the_end() -> None:
    taken: list[str] = []
    turn = InTurn({"a": 3, "b": 1}, lambda name, parts: taken.append(name))
    turn.add("a", use())
    turn.call_ended(["a"])
    turn.finish()
    assert taken == ["a"]
    with pytest.raises(UncoveredParameterUseError):
        turn.add("b", use())
