"""Every operator of the table has one rule, under the name that torch's graphs use."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.guards.probing.loss_rules import RULES


def names_in(loss: Tensor) -> set[str]:
    found, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            found.add(type(node).__name__.partition("Backward")[0])
            waiting += [part for part, _ in node.next_functions]
    return found - {"AccumulateGrad"}


LOSSES = {
    "cross entropy": lambda x: F.cross_entropy(x, torch.tensor([0, 1, 2, 0])),
    "squares": lambda x: F.mse_loss(x, torch.zeros(4, 3)),
    "by hand": lambda x: (x - 1).pow(2).sum(1).mean() / 2,
    "shapes": lambda x: torch.stack([x.t().reshape(-1).view(3, 4)[:, 0], x[:3, 1]]).sum(),
    "products": lambda x: torch.cat([x @ torch.ones(3, 2), x[:, :2]]).logsumexp(1).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_ordinary_losses_are_made_of_operators_with_rules(name: str) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    assert names_in(LOSSES[name](x)) <= RULES.keys()
