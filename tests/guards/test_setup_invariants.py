"""What was fixed at set-up. That a loop which changes it is refused: see test_protocol."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hushgrad.errors import ContractChangedError, StrayGradientError, UnsupportedOptimizerError
from hushgrad.guards.setup_invariants import SetupInvariants
from hushgrad.sampling.records import PhysicalBatch


def frozen(model: nn.Module, optimizer: torch.optim.Optimizer) -> SetupInvariants:
    return SetupInvariants(model, optimizer, dict(model.named_parameters()))


def test_all_stray_gradients_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    setup = frozen(model, torch.optim.SGD(model.parameters()))
    setup.require_no_surprises()
    for parameter in model[0].parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(StrayGradientError, match=r"0\.weight, 0\.bias: "):
        setup.require_no_surprises()


def test_what_became_trainable_and_what_no_longer_is_are_both_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    setup = frozen(model, torch.optim.SGD(model.parameters()))
    model[1] = nn.Linear(2, 2, bias=False)
    with pytest.raises(ContractChangedError, match=r"1\.weight; no longer trainable: 1\.weight, 1\.bias"):
        setup.require_same_parameters()


def item(*, first: bool, last: bool) -> PhysicalBatch:
    return PhysicalBatch((1,), 1, 1.0, 0, 0, first=first, last=last)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_learning_rate_kept_in_a_tensor_is_compared_by_value(in_place: bool) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    setup = frozen(model, optimizer)
    setup.require_steady_groups(item(first=True, last=False))
    setup.require_steady_groups(item(first=False, last=False))
    if in_place:
        optimizer.param_groups[0]["lr"].mul_(0.5)
    else:
        optimizer.param_groups[0]["lr"] = torch.tensor(0.05)
    with pytest.raises(ContractChangedError, match="learning rate"):
        setup.require_steady_groups(item(first=False, last=True))
    setup.require_steady_groups(item(first=True, last=True))


def test_an_optimizer_that_decays_through_data_in_a_step_without_gradients_is_refused() -> None:
    model = nn.Linear(2, 2)
    setup = frozen(model, torch.optim.SGD(model.parameters()))
    setup.expect_no_update()
    for parameter in model.parameters():
        parameter.data.mul_(0.9)  # leaves no mark but the values
    with pytest.raises(UnsupportedOptimizerError, match="without gradients"):
        setup.require_expected_update()


def test_weights_that_are_not_finite_have_not_moved_in_a_step_that_leaves_them() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
        model.bias.fill_(float("inf"))
    setup = frozen(model, torch.optim.SGD(model.parameters()))
    setup.expect_no_update()
    setup.require_expected_update()
