"""Where capture is on, and what an output in which examples were mixed is refused for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from private_loops import Training
from torch import Tensor, nn

from hushgrad.errors import CrossSampleLeakError, PrivacyUnitError


class Mixes(nn.Module):
    """A layer, and something done to its output."""

    def __init__(self, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.layer(x))


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "the batch's mean taken off": lambda h: h - h.mean(0),
    "divided by the batch's maximum": lambda h: h / h.max(),
    "a softmax over the batch": lambda h: h.softmax(0),
    "another order": lambda h: h[torch.randperm(len(h))],
    "distances to each other": lambda h: torch.cdist(h, h)[:, :2],
}


@pytest.mark.parametrize("name", MIXING)
def test_examples_mixed_after_the_last_parameter_are_refused(name: str) -> None:
    training = Training(model=Mixes(MIXING[name]), physical=None)
    item = next(iter(training.loader))
    with pytest.raises(PrivacyUnitError, match="an output of the model"):
        training.work(item)
    assert training.session.steps == 0


def test_a_statistic_of_the_batch_beside_the_output_may_be_looked_at() -> None:
    """Only a backward through it is refused: what has no row for each example harms nobody in itself."""
    training = Training(model=Mixes(lambda h: (h, {"mean": h.mean(0)})), physical=None)
    for x, y in training.loader:
        output, others = training.model(x)
        torch.autograd.grad(others["mean"].sum(), others["mean"], retain_graph=True)
        nn.functional.mse_loss(output, y).backward()
        training.optimizer.step()
    assert training.session.steps == 3


def test_an_output_that_mixes_examples_is_refused_also_where_no_gradient_comes_back_through_it() -> None:
    """Its values may reach the loss as a target or a weight, where nobody sees it (a teacher's centred outputs)."""
    training = Training(model=Mixes(lambda h: (h, {"centred": (h - h.mean(0)).detach()})), physical=None)
    x, y = next(iter(training.loader))
    output, others = training.model(x)
    nn.functional.mse_loss(output, y + others["centred"]).backward()
    with pytest.raises(CrossSampleLeakError, match="mixes the examples"):
        training.optimizer.step()
    assert training.session.steps == 0


def test_a_model_that_returns_its_scalar_loss_is_trained() -> None:
    training = Training(model=Mixes(lambda h: h.square().sum(1).mean()), physical=None)
    for x, _ in training.loader:
        training.model(x).backward()
        training.optimizer.step()
    assert training.session.steps == 3


@pytest.mark.parametrize(
    "after",
    [
        lambda h: h.log_softmax(1),
        lambda h: nn.functional.normalize(h, dim=1),
        lambda h: h[:, :1].squeeze(1),
        lambda h: h.view(h.shape[0], 2, 1),
        lambda h: h - h.mean(1, keepdim=True),
        lambda h: h.clamp(-1, 1).topk(1).values,
        lambda h: torch.where(h > 0, h, 0.1 * h),
        lambda h: torch.stack([h, h]).sum(0).tanh().logsumexp(1),
    ],
)
def test_what_keeps_the_examples_apart_is_not_refused(after: Callable[[Tensor], Tensor]) -> None:
    training = Training(model=Mixes(after), physical=None)
    for x, _ in training.loader:
        training.model(x).reshape(x.shape[0], -1).sum(1).mean().backward()
        training.optimizer.step()
    assert training.session.steps == 3
