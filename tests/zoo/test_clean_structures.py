"""Structures of models and loops: exact or refused, in one batch, over physical batches, and in whole sessions."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from brought.report import on_the_page
from clean_contestants import built, by_hushgrad, by_opacus, oracle
from clean_models import call, losses, rows
from clean_structures import (
    CALLS,
    SINGLE,
    STRUCTURES,
    B,
    D,
    Given,
    compiled,
    eval_forward,
    input_gradient_first,
    one_backward,
    pair,
    two_backwards,
    two_forwards,
    vectors,
)
from torch import Tensor, nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.errors import HushgradError
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.oracle import clipped_sum_of

REFUSED = {
    "`BatchNorm2d` in training",
    "a custom autograd function of a parameter",
    "`h - h.mean(0)`",
    "`Embedding(max_norm=1)`",
    "`Embedding(scale_grad_by_freq=True)`",
}
NOISELESS = DPSGD(noise_multiplier=0, clipping=FlatClipping(1e9), sampling=PoissonSampling(0.5), expected_batch_size=B)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [name for name, structure in STRUCTURES.items() if structure.program is not compiled])
def test_a_structure_is_exact_or_refused(name: str) -> None:
    outcome = by_hushgrad(STRUCTURES[name])
    assert outcome.verdict == ("refused" if name in REFUSED else "exact"), outcome.detail
    if outcome.verdict == "refused":
        assert outcome.detail.startswith("DP")


PLAIN = [
    name
    for name, structure in STRUCTURES.items()
    if name not in REFUSED and structure.program not in SINGLE and structure.program is one_backward
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PLAIN)
def test_a_structure_adds_up_over_physical_batches(name: str) -> None:
    structure = STRUCTURES[name]
    model, inputs = built(structure)
    per_example = oracle(structure)
    squares = [value.reshape(B, -1).square().sum(1) for value in per_example.values()]
    limit = float(torch.stack(squares).sum(0).sqrt().median())
    pool = UsePool()
    scope = Scope(model, pool)
    total: dict[str, Tensor] = {}
    for part in (slice(0, 2), slice(2, B)):
        pool.batch_size = part.stop - part.start
        structure.program(model, rows(inputs, part))
        for key, value in clipped_sums(pool.take(), clip=FlatClipping(limit)).items():
            total[key] = total[key] + value if key in total else value
    scope.detach()
    for key, value in clipped_sum_of(per_example, FlatClipping(limit)).items():
        torch.testing.assert_close(total.get(key, torch.zeros_like(value)), value, rtol=1e-8, atol=1e-10)


def test_the_page_of_structures_is_what_the_runs_give_now() -> None:
    path = Path(__file__).parents[2] / "docs" / "structures.py"
    specification = importlib.util.spec_from_file_location("structures", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    page = module.PAGE.read_text(encoding="utf-8")
    assert "| `torch.compile(model)` | exact |" in page
    assert page == module.page(on_the_page(page)), "run: python docs/structures.py"  # test_brought looks at these lines


# pop from empty list -----------------------------------------------------------------------------------------------


POPS = [
    "two backwards through one graph",
    "a backward after a forward in `eval()`",
    "input gradients first, then backward",
]


@pytest.mark.parametrize("name", POPS)
def test_what_pops_from_an_empty_list_elsewhere_is_exact_here(name: str) -> None:
    elsewhere = by_opacus(CALLS[name])
    assert (elsewhere.verdict, elsewhere.detail) == ("fails", "IndexError: pop from empty list")
    assert by_hushgrad(CALLS[name]).verdict == "exact"


def test_the_fourth_a_gradient_penalty_is_exact_here_too() -> None:
    elsewhere = by_opacus(CALLS["a gradient penalty"])
    assert elsewhere.detail == "IndexError: pop from empty list"
    assert by_hushgrad(CALLS["a gradient penalty"]).verdict == "exact"


def attach(model: nn.Module) -> tuple[Any, Session]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, privatize(model, optimizer, NOISELESS)


def assert_same_weights(ours: nn.Module, plain: nn.Module) -> None:
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("program", [two_backwards, eval_forward, input_gradient_first, two_forwards((0, 1))])
def test_the_same_loops_in_a_session_that_observes_its_loader(program: Any) -> None:
    """What a session without noise and clipping does is what the ordinary loop does."""
    torch.manual_seed(3)
    model, data = pair().double(), vectors(8)
    plain = copy.deepcopy(model)
    mechanism = DPSGD(
        noise_multiplier=0,
        clipping=FlatClipping(1e9),
        sampling=PoissonSampling(1.0),
        expected_batch_size=8,
        loss_reduction="sum",
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism)
    for x in session.batches(data, steps_per_pass=2):
        program(model, x)
        optimizer.step()
    for _ in range(2):
        plain.zero_grad()
        program(plain, data)
        torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert_same_weights(model, plain)
    assert session.steps == 2


# Two networks ------------------------------------------------------------------------------------------------------


def adversaries() -> tuple[nn.Module, nn.Module]:
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, D)).double(), pair().double()


@pytest.mark.parametrize("is_generator_private", [False, True], ids=["critic private", "both private"])
def test_adversarial_training_gives_the_ordinary_updates(is_generator_private: bool) -> None:
    torch.manual_seed(5)
    generator, critic = adversaries()
    plain_generator, plain_critic = copy.deepcopy(generator), copy.deepcopy(critic)
    critic_optimizer, critic_session = attach(critic)
    generator_optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    generator_session = privatize(generator, generator_optimizer, NOISELESS) if is_generator_private else None
    plain = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (plain_critic, plain_generator)]
    for _ in range(3):
        real, noise = vectors(B), torch.randn(B, 2).double()
        # The critic's step: the generator's output is data.
        with torch.no_grad():
            fake = generator(noise)
        critic_session.backward(losses(critic(real)) - losses(critic(fake)))
        critic_optimizer.step()
        # The generator's step passes through the critic, which is not to learn from it.
        with critic_session.paused():
            generator_optimizer.zero_grad()
            found = losses(critic(generator(noise)))
            if generator_session is None:
                (found.sum() / B).backward()
            else:
                generator_session.backward(found)
            generator_optimizer.step()
        plain_critic.zero_grad()
        fake = plain_generator(noise).detach()
        ((losses(plain_critic(real)) - losses(plain_critic(fake))).sum() / B).backward()
        plain[0].step()
        plain_generator.zero_grad()
        (losses(plain_critic(plain_generator(noise))).sum() / B).backward()
        plain[1].step()
    assert_same_weights(critic, plain_critic)
    assert_same_weights(generator, plain_generator)
    assert critic_session.steps == 3


def test_a_generators_step_through_a_critic_that_is_not_paused_is_refused() -> None:
    generator, critic = adversaries()
    _, session = attach(critic)
    with pytest.raises(HushgradError, match=r"outside `session\.backward`"):
        losses(critic(generator(torch.randn(B, 2).double()))).sum().backward()
    session.close()


# Parts of a model that is trained through another module --------------------------------------------------------------


def test_an_encoder_that_is_called_by_itself_and_a_head_that_is_not_private() -> None:
    torch.manual_seed(6)
    encoder, head = pair().double(), nn.Linear(3, 2).double().requires_grad_(False)
    plain = copy.deepcopy(encoder)
    optimizer, session = attach(encoder)
    x = vectors(B)
    session.backward(losses(head(encoder(x))))
    optimizer.step()
    (losses(head(plain(x))).sum() / B).backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert_same_weights(encoder, plain)


def test_state_that_is_carried_between_calls_of_a_module_is_followed_or_refused() -> None:
    """Truncated backpropagation: the detached state of one call is the input of the next."""
    torch.manual_seed(7)
    model = Given(lambda m, x, h: m.cell(x, h), cell=nn.GRUCell(D, 3)).double()
    plain = copy.deepcopy(model)
    optimizer, session = attach(model)
    state = plain_state = torch.zeros(B, 3).double()
    for x in (vectors(B), vectors(B)):
        out = call(model, (x, state))
        session.backward(losses(out))
        optimizer.step()
        state = out.detach()
        plain.zero_grad()
        plain_out = call(plain, (x, plain_state))
        (losses(plain_out).sum() / B).backward()
        torch.optim.SGD(plain.parameters(), lr=0.1).step()
        plain_state = plain_out.detach()
    assert_same_weights(model, plain)
