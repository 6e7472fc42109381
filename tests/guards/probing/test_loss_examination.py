"""One example's loss and gradient do not depend on the others' rows: asked by running the loop's program again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from programs import B, program
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError, LossShapeError
from hushgrad.guards.probing.loss_examination import require_separate_program

Loss = Callable[[Tensor, Tensor], Tensor]


def ce(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output, targets, reduction="none")


def best_first(output: Tensor, targets: Tensor) -> Tensor:
    found, best = output.sum() * 0, 0.0
    for loss in ce(output, targets):
        if float(loss) > best:
            found, best = found + loss, float(loss)
    return found / B


class Centred(torch.autograd.Function):
    """Its gradient is centred over the batch."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        return gradients - gradients.mean(0)


MIXING: dict[str, Loss] = {
    "largest losses": lambda o, y: ce(o, y).topk(3).values.sum() / B,
    "sorted losses": lambda o, y: ce(o, y).sort().values[:3].sum() / B,
    "above the mean": lambda o, y: torch.where(ce(o, y) > ce(o, y).mean(), ce(o, y), 0).mean(),
    "chosen by NumPy": lambda o, y: (
        ce(o, y)[torch.from_numpy(ce(o, y).detach().numpy().argsort()[-3:].copy())].sum() / B
    ),
    "detached weights": lambda o, y: (ce(o, y) * ce(o, y).detach().softmax(0)).sum(),
    "loss by its own value": lambda o, y: F.cross_entropy(o, y) / F.cross_entropy(o, y).detach(),
    "weights of counts": lambda o, y: (ce(o, y) / torch.bincount(y, minlength=3)[y]).mean(),
    "a temperature of the batch": lambda o, y: F.cross_entropy(o / max(0.1, float(o.std())), y),
    "a number that was taken out": lambda o, y: F.cross_entropy(o, y) * (0.3 + 0.7 * o.detach().abs().max().item()),
    "a number of chosen ones": lambda o, y: ce(o, y).square().sum() / len(y[y == 0]),
    "others' targets": lambda o, y: F.cross_entropy(o, y.roll(1)),
    "centres of classes": lambda o, y: (
        (o - (F.one_hot(y, 3).float().T @ o.detach() / F.one_hot(y, 3).sum(0)[:, None])[y]).square().mean()
    ),
    "risk sets": lambda o, y: -(o[:, 0] - o[:, 0].logcumsumexp(0)).mean(),
    "a gradient's norm": lambda o, y: (
        F.cross_entropy(o, y) / torch.autograd.grad(F.cross_entropy(o, y), o, retain_graph=True)[0].norm()
    ),
    "only the gradient": lambda o, y: F.cross_entropy(o, y) + Centred.apply(o).square().mean(),
    "a choice in Python": best_first,
}


@pytest.mark.parametrize("name", MIXING)
def test_what_lets_examples_change_each_other_is_refused_by_call_and_line(name: str) -> None:
    with pytest.raises(CrossSampleLeakError, match=r"test_loss_examination\.py, line \d+"):
        require_separate_program(program(MIXING[name]), "mean", None)


HONEST: dict[str, Loss] = {
    "cross entropy": lambda o, y: F.cross_entropy(o, y),
    "sum over B": lambda o, y: ce(o, y).sum() / len(y),
    "focal": lambda o, y: ((1 - torch.exp(-ce(o, y))).square() * ce(o, y)).mean(),
    "own weights": lambda o, y: (ce(o, y) * torch.tensor([0.1, 0.3, 0.6])[y]).mean(),
    "noise of fixed scale": lambda o, y: F.cross_entropy(o + torch.rand_like(o), y),
    "one by one": lambda o, y: torch.stack([F.cross_entropy(o[i : i + 1], y[i : i + 1]) for i in range(B)]).mean(),
    "written into a buffer": lambda o, y: torch.zeros(B).index_put((torch.arange(B),), ce(o, y)).mean(),
    "in place": lambda o, y: (o * 1).mul_(2).square().mean(),
}


@pytest.mark.parametrize("name", HONEST)
def test_a_mean_of_one_loss_for_each_example_is_told_to_be_one(name: str) -> None:
    assert require_separate_program(program(HONEST[name]), "mean", None) == ""


@pytest.mark.parametrize(
    ("declared", "loss"),
    [
        ("mean", lambda o, y: -0.5 * (1 + o - o.exp()).sum()),
        ("mean", lambda o, y: ce(o, y).square().sum() * 0.1),
        ("sum", lambda o, y: 3 * ce(o, y).square().mean()),
    ],
)
def test_a_sum_is_told_from_a_mean_by_an_example_less(declared: str, loss: Loss) -> None:
    with pytest.raises(LossShapeError, match="loss_reduction"):
        require_separate_program(program(loss), declared, None)


def test_losses_of_each_example_are_divided_by_no_size_of_the_batch() -> None:
    with pytest.raises(CrossSampleLeakError, match="divided by the number of examples"):
        require_separate_program(program(lambda o, y: ce(o, y) / len(y), is_rows=True), "mean", B)
    constant = program(lambda o, y: ce(o, y) / float(B), is_rows=True)
    assert require_separate_program(constant, "mean", B) == ""


def test_what_cannot_be_run_again_is_said() -> None:
    assert "a transform of torch.func" in require_separate_program(
        program(lambda o, y: torch.vmap(lambda row: row.sum())(o).mean()), "mean", None
    )
