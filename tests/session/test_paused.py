"""Parameters that are frozen for a while: gradients pass through them, and nothing is recorded."""

from __future__ import annotations

import copy

import pytest
import torch
from private_loops import attach, losses
from torch import nn

from hushgrad.errors import ContractChangedError
from hushgrad.session.paused import frozen_for_a_while


def test_a_generators_step_through_a_paused_critic_is_ordinary_and_leaves_nothing_in_the_critic() -> None:
    critic, optimizer, session = attach()
    generator = nn.Linear(2, 3).double()
    plain_critic, plain_generator = copy.deepcopy(critic), copy.deepcopy(generator)
    noise, x = torch.randn(5, 2).double(), torch.randn(5, 3).double()
    with session.paused():
        losses(critic, generator(noise)).sum().backward()
    losses(plain_critic, plain_generator(noise)).sum().backward()
    torch.testing.assert_close(generator.weight.grad, plain_generator.weight.grad)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in critic.parameters())
    plain_critic.zero_grad()
    session.backward(losses(critic, x))
    optimizer.step()
    (losses(plain_critic, x).sum() / 8).backward()
    torch.optim.SGD(plain_critic.parameters(), lr=0.1).step()
    for ours, theirs in zip(critic.parameters(), plain_critic.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_pause_ends_also_with_an_exception_and_can_be_nested() -> None:
    model, _, session = attach()
    with pytest.raises(ZeroDivisionError), session.paused(), session.paused():
        raise ZeroDivisionError
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_step_inside_a_pause_is_refused() -> None:
    model, optimizer, session = attach()
    session.backward(losses(model, torch.randn(4, 3).double()))
    with session.paused(), pytest.raises(ContractChangedError, match="paused"):
        optimizer.step()
    optimizer.step()
    assert session.steps == 1


def test_only_what_required_a_gradient_requires_one_again() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with frozen_for_a_while(model.parameters()):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)
