"""What forwards announce is what the backward records, whatever the operators; what is run again does not count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hushgrad.capture.expected import ExpectedUses
from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.gradients.contribution import Plan


class Blocks(nn.Module):
    """Two layers that may be run again in the backward, and one that is called twice."""

    def __init__(self, is_checkpointed: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.is_checkpointed = is_checkpointed

    def forward(self, x: Tensor) -> Tensor:
        run = (lambda x: checkpoint(self.first, x, use_reentrant=False)) if self.is_checkpointed else self.first
        return self.second(self.second(run(x).tanh()).tanh())


def announced(model: nn.Module, *, also_backward: bool = False) -> ExpectedUses:
    pool = UsePool(Plan(operand_bytes=0))
    pool.batch_size = 3
    scope = Scope(model, pool)
    try:
        total = model(torch.randn(3, 5, 4, requires_grad=True)).sum()
        if also_backward:
            total.backward()
    finally:
        scope.detach()
    assert pool.expected is not None
    return pool.expected


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_each_call_counts_once_for_its_parameters_also_where_it_is_run_again(is_checkpointed: bool) -> None:
    found = announced(Blocks(is_checkpointed), also_backward=True)
    assert found.calls == {"first.weight": 1, "first.bias": 1, "second.weight": 2, "second.bias": 2}


def test_bytes_are_those_of_inputs_and_outputs_or_of_gradients_whichever_are_fewer() -> None:
    assert announced(nn.Linear(4, 4)).nbytes == 4 * 3 * min(5 * (4 + 4), 4 * 4 + 4)
    assert announced(nn.LayerNorm(4)).nbytes == 4 * 3 * (4 + 4)


def test_a_plan_without_a_budget_announces_nothing() -> None:
    assert UsePool(Plan()).expected is None


def test_the_digest_tells_other_calls_and_another_order() -> None:
    def digest(*calls: str) -> int:
        found = ExpectedUses()
        for names in calls:
            found.add(names.split(), 0)
        return found.digest

    assert digest("a b", "c") == digest("a b", "c")
    assert len({digest("a b", "c"), digest("c", "a b"), digest("a", "b c"), digest("a b")}) == 4
