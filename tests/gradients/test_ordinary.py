"""Ordinary gradients, also of models that run a backward inside their own, with nothing left in `.grad`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hushgrad.gradients.oracle import one_at_a_time
from hushgrad.gradients.ordinary import may_run_backwards, ordinary_gradients


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.middle, self.unused = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if self.reentrant is None:
            return self.middle(hidden)
        out: Tensor = checkpoint(self.middle, hidden, use_reentrant=self.reentrant)
        return out


def models() -> tuple[Checkpointed, Checkpointed]:
    plain, reentrant = Checkpointed(None), Checkpointed(True)
    reentrant.load_state_dict(plain.state_dict())
    return plain, reentrant


def test_gradients_through_reentrant_checkpointing_are_those_without_it() -> None:
    plain, reentrant = models()
    x, weights = torch.randn(5, 3), torch.randn(5, 2)
    wanted = ordinary_gradients([plain(x)], [weights], dict(plain.named_parameters()))
    found = ordinary_gradients([reentrant(x)], [weights], dict(reentrant.named_parameters()))
    assert set(found) == set(wanted) == {"first.weight", "first.bias", "middle.weight", "middle.bias"}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_grad_of_every_tensor_is_afterwards_what_it_was(reentrant: bool | None) -> None:
    """Guarantee: `.grad` of the parameters, and of every leaf that the graph shows, is afterwards what it was."""
    model = Checkpointed(reentrant)
    x = torch.randn(5, 3, requires_grad=True)
    leaves = [x, *model.parameters()]
    marks = [None if place % 2 else torch.full_like(leaf, 7.0) for place, leaf in enumerate(leaves)]
    for leaf, mark in zip(leaves, marks, strict=True):
        leaf.grad = mark
    ordinary_gradients([model(x)], [torch.ones(5, 2)], dict(model.named_parameters()))
    for leaf, mark in zip(leaves, marks, strict=True):
        assert leaf.grad is mark
        assert mark is None or torch.equal(mark, torch.full_like(mark, 7.0))


def test_a_backward_that_raises_leaves_grad_as_it_was() -> None:
    model = Checkpointed(True)
    mark = model.first.weight.grad = torch.ones(4, 3)
    out = model(torch.randn(5, 3))
    out.register_hook(lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ordinary_gradients([out], [torch.ones(5, 2)], dict(model.named_parameters()))
    assert model.first.weight.grad is mark
    assert torch.equal(mark, torch.ones(4, 3))
    assert model.middle.weight.grad is None


def test_only_a_custom_function_may_run_backwards() -> None:
    x = torch.randn(5, 3)
    assert [may_run_backwards([Checkpointed(kind)(x)]) for kind in (None, False, True)] == [False, False, True]


def test_the_oracle_has_the_gradients_of_a_reentrant_model() -> None:
    plain, reentrant = models()
    rows = torch.randn(4, 1, 3)
    wanted, found = (
        one_at_a_time(model, [lambda row=row, model=model: model(row).square().sum() for row in rows])  # type: ignore[misc]
        for model in (plain, reentrant)
    )
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
