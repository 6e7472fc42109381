"""A term is its operators over the parameters as they are and constants as they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hushgrad.errors import InvalidArgumentError
from hushgrad.session.term_program import TermProgram

GENERATOR = torch.Generator()


def program(term: Callable[[nn.Linear], Tensor], model: nn.Linear) -> TermProgram:
    return TermProgram(lambda: term(model), dict(model.named_parameters()), "the regularizer <lambda>")


def test_the_program_follows_the_parameters_and_not_the_constants() -> None:
    model, constant = nn.Linear(3, 2), torch.ones(2, 3)
    found = program(lambda m: (m.weight * constant).sum(), model)
    before = found().detach()
    constant.mul_(5)
    torch.testing.assert_close(found().detach(), before)
    with torch.no_grad():
        model.weight += 1
    torch.testing.assert_close(found().detach(), before + 6)
    assert len(found.reads) == 1


def test_the_program_runs_no_code_of_the_loops() -> None:
    calls: list[None] = []

    def term(model: nn.Linear) -> Tensor:
        calls.append(None)
        return model.weight.square().sum()

    found = program(term, nn.Linear(3, 2))
    count = len(calls)
    found()
    found()
    assert len(calls) == count


def test_autocast_around_the_step_changes_nothing() -> None:
    model = nn.Linear(3, 2)
    found = program(lambda m: (m.weight @ torch.ones(3, 3)).sum(), model)
    with torch.autocast("cpu", torch.bfloat16):
        assert found().dtype == torch.float32
        torch.testing.assert_close(found(), (model.weight.double() @ torch.ones(3, 3).double()).sum().float())


@pytest.mark.parametrize(
    ("term", "what"),
    [
        (lambda m: (m.weight * torch.rand(2, 3)).sum(), "random numbers"),
        (lambda m: (m.weight * torch.rand(2, 3, generator=GENERATOR)).sum(), "no tensor"),
        (lambda m: (m.weight * m.weight.new_empty(2, 3)).sum(), "memory"),
        (lambda m: m.weight.sum() * float(m.weight.sum()), "cannot be written down"),
    ],
)
def test_what_has_no_value_of_its_own_is_refused(term: Callable[[nn.Linear], Tensor], what: str) -> None:
    with pytest.raises(InvalidArgumentError, match=what):
        program(term, nn.Linear(3, 2))
