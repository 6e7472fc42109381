"""What a session tells the other processes and hears from them; tests/parallel runs it in several processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.accounting.conditions import third_party
from hushgrad.errors import DesyncError, PeerFailedError
from hushgrad.parallel import messages
from hushgrad.parallel.grid import Grid
from hushgrad.parallel.world import World
from hushgrad.randomness import KeyStream
from hushgrad.session.others import Others

TWO = World(rank=0, size=2)
"""Two processes, of which nobody is reached: what is exchanged is written down instead."""


def a_session() -> Session:
    model = nn.Linear(3, 2)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=4
    )
    session = privatize(model, torch.optim.SGD(model.parameters(), 0.1), mechanism, key=KeyStream.fixed_for_tests(1))
    session.backward(model(torch.randn(4, 3)).square().sum(1))
    session._optimizer.step()
    return session


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(messages, "exchanged", lambda world, call, message, **_: found.append((call, message)))
    return found


def test_one_process_tells_nobody(told: list[Any]) -> None:
    session = a_session()
    others = Others(session._parts, session._optimizer)
    with pytest.raises(ArithmeticError), others.telling(), others.in_all("step", None):
        raise ArithmeticError
    others.after_discard()
    others.at_close()
    assert told == []


def test_an_error_is_told_once_and_one_that_all_know_is_not(told: list[Any]) -> None:
    session = a_session()
    others = Others(replace(session._parts, grid=Grid(TWO, TWO)), session._optimizer)
    error = ArithmeticError("0.123456")
    for _ in range(2):
        others.failed(error)
    others.failed(DesyncError("what", cure="cure"))
    [(call, message)] = told
    assert call == "failure"
    assert message["kind"] == "ArithmeticError"
    assert "0.123456" not in str(message)


def test_what_another_process_took_on_trust_and_found_is_in_this_ones_account() -> None:
    session = a_session()
    others = Others(replace(session._parts, grid=Grid(TWO, TWO)), session._optimizer)
    error = PeerFailedError("it raised", cure="cure")
    error.conditions = [third_party("operator", "planted").as_note()]
    others.failed(error)
    assert "planted" in str(session.guarantee(1e-3))
    assert session.epsilon(1e-3) < float("inf")
    error.is_finding = True
    others.failed(error)
    assert session.epsilon(1e-3) == float("inf")
