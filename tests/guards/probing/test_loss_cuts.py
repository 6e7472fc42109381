"""Where a loss may be multiplied before its gradient is rounded: each way down passes one place, or none is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.guards.probing.loss_cuts import Cut, cuts_of
from hushgrad.guards.probing.loss_graph import LossGraph
from hushgrad.torch_internals import sequence_number

B = 6
Loss = Callable[[Tensor, Tensor], Tensor]
Y = torch.arange(B) % 3


def output(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Any]:
    """An output `[B, 3]` of a model, and what its only operator hangs on."""
    anchor = torch.zeros((), requires_grad=True)
    out = (torch.randn(B, 3) + anchor).to(dtype)
    return out, torch.autograd.graph.get_gradient_edge(anchor).node


def cuts(loss: Loss, dtype: torch.dtype = torch.float32) -> list[Cut]:
    out, anchor = output(dtype)
    outputs = {(sequence_number(out.grad_fn), 0)}
    found = loss(out, Y)
    return cuts_of(found.grad_fn, found.output_nr, lambda: LossGraph(B, outputs, {}, anchor, opens_scalars=True))


def names(found: list[Cut]) -> list[str]:
    return sorted(type(cut.node).__name__ for cut in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda o, y: F.cross_entropy(o.float(), y), ["NllLossBackward0"]),
        (lambda o, y: F.cross_entropy(o.float(), y) / 4, ["DivBackward0"]),
        (lambda o, y: F.cross_entropy(o.float(), y) + o.float().square().mean(), ["AddBackward0"]),
        (lambda o, y: F.cross_entropy(o.float(), y).bfloat16(), ["NllLossBackward0"]),
        (
            lambda o, y: F.cross_entropy(o.float(), y).bfloat16() - o.float().mean().bfloat16(),
            ["MeanBackward0", "NllLossBackward0"],
        ),
        (lambda o, y: (F.cross_entropy(o.float(), y, reduction="none") / B).sum(), ["SumBackward0"]),
    ],
)
def test_the_place_is_the_highest_number_of_32_bits(loss: Loss, expected: list[str], dtype: torch.dtype) -> None:
    assert names(cuts(loss, dtype)) == expected


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, y: F.cross_entropy(o.float(), y).bfloat16() / 4,  # divided in 16 bits
        lambda o, y: o.bfloat16().mean().float(),  # a mean in 16 bits
        lambda o, y: o.bfloat16().mean(0).float().mean(),  # one over the batch, in 16 bits
        lambda o, y: (o.bfloat16().square() / B).float().sum(),  # divided in 16 bits, and then summed
        lambda o, y: F.mse_loss(o.float(), torch.zeros(B, 3)),  # multiplied by a rounded inverse
        lambda o, y: (o * torch.ones(3, requires_grad=True)).float().mean(),  # something else is trained, too
        lambda o, y: (m := o.float().mean()).bfloat16() + (m * 2).bfloat16(),  # one place below another
        lambda o, y: torch.ones(3, requires_grad=True).mean(),  # none of the model's
    ],
)
def test_there_is_no_place_where_it_would_be_rounded_before(loss: Loss) -> None:
    assert cuts(loss) == []


def test_means_over_the_batch_are_told_with_their_place() -> None:
    (cut,) = cuts(lambda o, y: o.square().mean(1).mean() + o.mean())
    assert sorted(type(node).__name__ for node in cut.means) == ["MeanBackward0", "MeanBackward0"]
