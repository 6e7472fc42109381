"""A copy of a private model is known again by its values, also after the original went on or was closed."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from private_loops import NOISY
from torch import nn

from hushgrad import Session, privatize
from hushgrad.errors import CrossSampleLeakError, NotEstablishedError
from hushgrad.session.trained_values import KEPT, TrainedValues


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def private(model: nn.Module, ledger: Path | None = None) -> tuple[torch.optim.Optimizer, Session]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, privatize(model, optimizer, NOISY, ledger=ledger)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, session: Session, steps: int) -> None:
    for _ in range(steps):
        session.backward(model(torch.randn(4, 3)).square().sum(1))
        optimizer.step()


def said(session: Session) -> list[str]:
    conditions = session.guarantee(1e-5).conditions
    return [condition.sentence for condition in conditions if condition.name == "uncounted steps"]


def by_state(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    made = network()
    made.load_state_dict(torch.load(file))
    return made


@pytest.mark.parametrize("copied", [copy.deepcopy, by_state], ids=["deepcopy", "load_state_dict"])
@pytest.mark.parametrize("then", ["open", "closed", "went on", "gone"])
def test_a_copy_says_what_the_original_spent(copied, then: str) -> None:  # type: ignore[no-untyped-def]
    model = network()
    optimizer, session = private(model)
    train(model, optimizer, session, 4)
    other = copied(model)
    if then == "went on":
        train(model, optimizer, session, 3)
    if then != "open":
        session.close()
    if then == "gone":
        del model, optimizer, session
    (sentence,) = said(private(other)[1])
    assert sentence.startswith("4 earlier steps of this model")


def test_a_copy_that_continues_the_same_ledger_counts_them_and_says_nothing(tmp_path: Path) -> None:
    model = network()
    optimizer, session = private(model, tmp_path / "run.jsonl")
    train(model, optimizer, session, 4)
    session.close()
    _, again = private(copy.deepcopy(model), tmp_path / "run.jsonl")
    assert again.steps == 4
    assert said(again) == []


def test_models_with_the_same_beginning_or_with_nothing_in_common_say_nothing() -> None:
    public = network()
    optimizer, session = private(first := copy.deepcopy(public))
    train(first, optimizer, session, 3)
    assert said(private(copy.deepcopy(public))[1]) == []
    assert said(private(network())[1]) == []


@pytest.mark.parametrize("copied", [lambda model: model, copy.deepcopy, by_state], ids=["itself", "deepcopy", "state"])
def test_a_frozen_part_that_was_trained_privately_says_what_was_spent_on_it(copied) -> None:  # type: ignore[no-untyped-def]
    model = network()
    optimizer, session = private(model)
    train(model, optimizer, session, 3)
    session.close()
    frozen = copied(model).requires_grad_(False)
    (sentence,) = said(private(nn.Sequential(frozen, nn.Linear(2, 20)))[1])
    assert sentence.startswith("3 earlier steps of this model")


def test_a_part_that_is_copied_into_another_model_is_known() -> None:
    model = network()
    optimizer, session = private(model)
    train(model, optimizer, session, 5)
    other = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 30))
    other[0].load_state_dict(model[0].state_dict())
    (sentence,) = said(private(other)[1])
    assert sentence.startswith("5 earlier steps")


def test_a_model_or_a_copy_of_it_is_not_trained_on_after_a_finding() -> None:
    model = network()
    optimizer, session = private(model)
    train(model, optimizer, session, 2)
    other = copy.deepcopy(model)
    session._parts.probe.on_finding(CrossSampleLeakError("mixes"))
    session.close()
    for again in (model, other):
        with pytest.raises(NotEstablishedError, match="copy of"):
            private(again)


def test_what_is_kept_is_bounded_and_keeps_no_model_alive() -> None:
    parameter = nn.Parameter(torch.randn(4, 8))
    small = nn.Parameter(torch.randn(3))
    values = TrainedValues([parameter, small])
    for step in range(KEPT + 10):
        with torch.no_grad():
            parameter.add_(1)
        values.note(step + 1)
    assert values.steps_behind([nn.Parameter(parameter.detach().clone())]) == KEPT + 10
    assert values.steps_behind([nn.Parameter(parameter.detach() - KEPT - 5)]) == 0
    del parameter
    values.note(1000)
