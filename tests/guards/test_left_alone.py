"""Writes into trained parameters between steps, and hooks between noise and update, are told; a plain loop has none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from private_loops import Training
from torch import nn

WRITTEN, HOOKS = "parameters written by the loop", "hooks on the optimizer"


def names(training: Training) -> list[str]:
    return [condition.name for condition in training.session.guarantee(1e-5).conditions]


def written(
    write: Callable[[nn.Module], object], optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
) -> list[str]:
    """Train three batches; `write` is called after each step that updated."""
    training = Training(noise_multiplier=1.0, optimizer=partial(optimizer, lr=0.1))
    for item in training.loader:
        training.work(item)
        if training.session.last_step_updated:
            write(training.model)
    return names(training)


@torch.no_grad()
def clamped(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.clamp_(-0.1, 0.1)


def clamped_by_data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.clamp_(-0.1, 0.1)


def loaded(model: nn.Module) -> None:
    model.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})


@pytest.mark.parametrize("write", [clamped, clamped_by_data, loaded])
def test_parameters_that_the_loop_writes_between_two_steps_are_a_condition(write: Callable[[nn.Module], None]) -> None:
    assert written(write).count(WRITTEN) == 1


@pytest.mark.parametrize("write", [clamped, clamped_by_data, loaded])
def test_parameters_that_the_first_batch_writes_before_any_step_are_a_condition(
    write: Callable[[nn.Module], None],
) -> None:
    training = Training(noise_multiplier=1.0)
    for number, item in enumerate(training.loader):
        if number == 0:
            write(training.model)
        training.work(item)
    assert names(training).count(WRITTEN) == 1


def test_parameters_that_are_written_before_the_first_batch_are_none() -> None:
    training = Training(noise_multiplier=1.0)
    clamped(training.model)
    for item in training.loader:
        training.work(item)
    assert WRITTEN not in names(training)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_a_loop_that_reads_parameters_and_freezes_them_has_no_such_condition(
    optimizer: type[torch.optim.Optimizer],
) -> None:
    def read(model: nn.Module) -> None:
        model.state_dict()
        model.eval()
        model(torch.randn(2, 3))
        model.train()
        model[0].bias.requires_grad_(False)  # type: ignore[index]

    assert not {WRITTEN, HOOKS} & set(written(read, optimizer))


def test_writes_before_the_first_step_are_no_condition() -> None:
    training = Training(noise_multiplier=1.0)
    clamped(training.model)
    training.run(training.work)
    assert WRITTEN not in names(training)


def test_a_hook_between_noise_and_update_is_a_condition_with_its_name() -> None:
    training = Training(noise_multiplier=1.0)

    def looks_at_the_update(*_: object) -> None:
        pass

    handle = training.optimizer.register_step_pre_hook(looks_at_the_update)
    training.run(training.work)
    handle.remove()
    (condition,) = [c for c in training.session.guarantee(1e-5).conditions if c.name == HOOKS]
    assert "looks_at_the_update" in condition.sentence


def test_hooks_before_make_private_and_after_the_step_are_no_condition() -> None:
    def hooked(parameters: object) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.1)  # type: ignore[arg-type]
        optimizer.register_step_pre_hook(lambda *_: None)
        return optimizer

    training = Training(noise_multiplier=1.0, optimizer=hooked)
    training.optimizer.register_step_post_hook(lambda *_: None)
    training.run(training.work)
    assert HOOKS not in names(training)
