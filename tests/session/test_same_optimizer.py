"""An optimizer's state goes back to the parameters that it came from, or nowhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hushgrad.errors import CheckpointError
from hushgrad.session.same_optimizer import names_by_group, require_same_optimizer


def trained(*order: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model whose optimizer has a group for each name, after a step."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    optimizer = torch.optim.Adam([{"params": list(model[name].parameters())} for name in order])
    sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return model, optimizer


def test_parameters_are_named_by_their_groups() -> None:
    model, optimizer = trained("b", "a")
    assert names_by_group(model, optimizer) == [["b.weight"], ["a.weight"]]
    assert names_by_group(nn.Linear(1, 1), optimizer) == [[None], [None]]


def test_a_state_of_the_same_parameters_in_the_same_order_passes() -> None:
    model, optimizer = trained("a", "b")
    require_same_optimizer(names_by_group(model, optimizer), optimizer.state_dict(), *trained("a", "b"))
    require_same_optimizer(None, optimizer.state_dict(), None, optimizer)


def test_the_same_parameters_in_another_order_are_refused() -> None:
    model, optimizer = trained("a", "b")
    with pytest.raises(CheckpointError, match="another order"):
        require_same_optimizer(names_by_group(model, optimizer), optimizer.state_dict(), *trained("b", "a"))


def test_groups_of_other_sizes_and_states_of_other_shapes_are_refused() -> None:
    model, optimizer = trained("a", "b")
    one = torch.optim.Adam(model.parameters())
    with pytest.raises(CheckpointError, match="groups of"):
        require_same_optimizer(None, optimizer.state_dict(), model, one)
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = torch.zeros(3, 2)
    with pytest.raises(CheckpointError, match="has the shape"):
        require_same_optimizer(names_by_group(model, optimizer), state, model, optimizer)
