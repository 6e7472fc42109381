"""What was fixed at set-up, and that a loop which changes it is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from private_loops import Training
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, privatize
from hushgrad.errors import ContractChangedError, CrossSampleLeakError, StrayGradientError, UnsupportedOptimizerError
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


def changing(training: Training, change: Callable[[int, int], float | None]) -> None:
    """Train eight passes of items of 3, 3 and 2 records, or of other sizes; `change(size, step)` is the new rate."""
    step = 0
    for _ in range(4):
        for item in training.loader:
            rate = change(len(item[0]), step)
            if rate is not None:
                training.optimizer.param_groups[0]["lr"] = rate
            training.work(item)
            step += 1


def poisson() -> Training:
    """Items of many sizes, each a logical batch."""
    training = Training(physical=None)
    training.session.close()
    training.engine = PrivacyEngine(test_key=3)
    _, _, training.loader = training.engine.make_private(
        module=training.model,
        optimizer=training.optimizer,
        data_loader=DataLoader(TensorDataset(torch.randn(24, 3), torch.randn(24, 2)), batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    training.session = training.engine.session
    return training


def names(training: Training) -> list[str]:
    return [condition.name for condition in training.session.guarantee(1e-5).conditions]


@pytest.mark.parametrize("power", [1.0, 0.5, -1.0])
def test_a_learning_rate_that_goes_with_the_size_of_the_item_is_refused(power: float) -> None:
    training = poisson()
    with pytest.raises(ContractChangedError, match="goes with the number of records"):
        changing(training, lambda size, step: 0.01 * size**power)


@pytest.mark.parametrize(
    "rate", [lambda step: 0.01 * (step + 1), lambda step: 0.1 / (step + 1), lambda step: 0.9**step]
)
def test_a_schedule_between_an_item_and_its_step_trains_and_is_a_condition(rate: Callable[[int], float]) -> None:
    training = poisson()
    changing(training, lambda size, step: rate(step))
    assert "values changed within an item" in names(training)


def test_a_schedule_after_each_step_is_no_condition() -> None:
    training = poisson()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.9)
    for _ in range(4):
        for item in training.loader:
            training.work(item)
            scheduler.step()
    assert "values changed within an item" not in names(training)


def test_a_stray_ordinary_gradient_raises_and_names_the_parameter() -> None:
    training = Training()
    before = training.values()
    item = next(iter(training.loader))
    (training.loss(item) + training.model[2].weight.square().sum()).backward()
    with pytest.raises(StrayGradientError, match=r"2\.weight") as caught:
        training.optimizer.step()
    assert "0.weight" not in str(caught.value)
    assert training.is_as(before)
    assert training.session.steps == 0


def test_losses_from_before_the_model_was_made_private_are_refused_with_the_order_as_the_cure() -> None:
    model = nn.Linear(3, 1)
    losses = model(torch.randn(4, 3)).squeeze(1).square()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4
    )
    session = privatize(model, optimizer, mechanism)
    session.backward(losses)
    with pytest.raises(StrayGradientError, match="Run the model after it was made private"):
        optimizer.step()
    assert session.steps == 0


def test_a_gradient_written_by_hand_raises() -> None:
    training = Training()
    training.loss(next(iter(training.loader))).backward()
    training.model[0].bias.grad = torch.ones(4)
    with pytest.raises(StrayGradientError, match=r"0\.bias"):
        training.optimizer.step()


def test_a_gradient_left_on_a_frozen_parameter_of_the_optimizer_raises() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    training = Training(model=model, optimizer=lambda _: torch.optim.SGD(model.parameters(), lr=0.1))
    item = next(iter(training.loader))
    model[0].weight.requires_grad_(True)
    model[0].weight.sum().backward()
    model[0].weight.requires_grad_(False)
    training.loss(item).backward()
    with pytest.raises(StrayGradientError, match=r"0\.weight"):
        training.optimizer.step()


def test_a_parameter_unfrozen_after_make_private_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    training = Training(model=model, optimizer=lambda _: torch.optim.SGD(model.parameters(), lr=0.1))
    before = training.values()
    model[0].weight.requires_grad_(True)
    with pytest.raises(ContractChangedError, match=r"0\.weight"):
        training.work(next(iter(training.loader)))
    assert training.is_as(before)


def test_a_parameter_frozen_for_a_while_keeps_its_value_and_is_trained_again_afterwards() -> None:
    training = Training()
    bias = training.model[0].bias
    values = []
    for trainable, item in zip((True, False, True), training.loader, strict=False):
        bias.requires_grad_(trainable)
        training.work(item)
        values.append(bias.detach().clone())
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[1], values[2])


def test_a_model_that_is_frozen_altogether_takes_no_step() -> None:
    training = Training()
    item = next(iter(training.loader))
    training.loss(item).backward()
    training.model.requires_grad_(False)
    with pytest.raises(ContractChangedError, match="no longer trainable"):
        training.optimizer.step()


def test_a_layer_replaced_after_make_private_is_refused() -> None:
    training = Training()
    training.model[2] = nn.Linear(4, 2)
    with pytest.raises(ContractChangedError, match=r"2\.weight"):
        training.work(next(iter(training.loader)))


def test_a_param_group_added_after_make_private_is_refused() -> None:
    training = Training()
    training.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(ContractChangedError, match="param_groups"):
        training.work(next(iter(training.loader)))


def test_a_batch_norm_put_back_into_train_mode_is_refused() -> None:
    """`model.train()` at the top of an epoch also wakes the frozen statistics of a backbone without parameters."""
    backbone = nn.BatchNorm1d(3, affine=False).eval()
    head = nn.Linear(3, 2)
    training = Training(model=nn.Sequential(backbone, head))
    training.model.train()
    x, y = next(iter(training.loader))
    nn.functional.mse_loss(head(backbone(x)), y).backward()
    with pytest.raises(CrossSampleLeakError, match="DP301 0: BatchNorm"):
        training.optimizer.step()


def test_loading_an_optimizers_state_is_no_change_of_contract() -> None:
    training = Training(optimizer=lambda p: torch.optim.Adam(p, lr=0.1))
    items = iter(training.loader)
    for _ in range(3):
        training.work(next(items))
    training.optimizer.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
    for item in items:
        training.work(item)
    assert training.session.steps == 3


def test_a_schedule_that_steps_inside_a_logical_batch_is_refused() -> None:
    training = Training()
    schedule = torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.9)
    with pytest.raises(ContractChangedError, match="last_step_updated"):
        training.run(lambda item: (training.work(item), schedule.step()))


def test_a_schedule_guarded_by_last_step_updated_steps_once_per_logical_batch() -> None:
    training = Training()
    schedule = torch.optim.lr_scheduler.OneCycleLR(training.optimizer, max_lr=0.1, total_steps=10)
    for item in training.loader:
        training.work(item)
        if training.engine.last_step_updated:
            schedule.step()
    assert schedule.last_epoch == len(training.loader) == 3


def test_a_schedule_steps_freely_where_every_item_is_a_logical_batch() -> None:
    training = Training(physical=None)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, 3)
    for item in training.loader:
        training.work(item)
        schedule.step()
    assert training.session.steps == 3


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


def test_a_gradient_hook_that_comes_after_set_up_sees_nothing_and_is_refused() -> None:
    training, seen = Training(), []
    training.model[2].weight.register_hook(lambda gradient: seen.append(gradient))
    item = next(iter(training.loader))
    training.loss(item).backward()
    with pytest.raises(ContractChangedError, match=r"2\.weight: got a gradient hook"):
        training.optimizer.step()
    assert not seen
