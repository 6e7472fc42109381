"""Where a backward belongs to no item, or sees another number of rows: the message names what to write instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from private_loops import Training
from torch import Tensor, nn

from hushgrad.errors import PrivacyUnitError


def train(step: Callable[[Training, Tensor], None], model: nn.Module | None = None) -> Training:
    training = Training(model=model, physical=None)

    def work(item: tuple[Tensor, Tensor]) -> None:
        step(training, item[0])

    training.run(work)
    return training


def squares(out: Tensor) -> Tensor:
    return out.flatten(1).square().sum(1)


def generators_step(training: Training, generator: nn.Module) -> None:
    training.model(generator(torch.randn(5, 2))).sum().backward()


def test_a_generators_step_after_the_models_own_is_told_of_session_paused_first() -> None:
    generator = nn.Linear(2, 3)

    def without(training: Training, x: Tensor) -> None:
        training.session.backward(squares(training.model(x)))
        training.optimizer.step()
        generators_step(training, generator)

    with pytest.raises(
        PrivacyUnitError, match=r"DP304 .*unknown\. Run forward and backward of another.*`with session\."
    ):
        train(without)

    def paused(training: Training, x: Tensor) -> None:
        training.session.backward(squares(training.model(x)))
        training.optimizer.step()
        with training.session.paused():
            generators_step(training, generator)

    assert train(paused).session.steps == 3
    assert generator.weight.grad is not None


def test_more_fakes_than_there_are_examples_are_told_of_as_many() -> None:
    def fixed(training: Training, x: Tensor) -> None:
        training.session.backward(squares(training.model(x)))
        training.session.backward(squares(training.model(torch.randn(20, 3)))[: len(x)])

    with pytest.raises(PrivacyUnitError, match=r"saw 20 rows for 8 examples.*one for each .*torch\.randn\(len\(x\)"):
        train(fixed)

    def as_many(training: Training, x: Tensor) -> None:
        training.session.backward(squares(training.model(x)))
        training.session.backward(squares(training.model(torch.randn(len(x), 3))))
        training.optimizer.step()

    assert train(as_many).session.steps == 3


class Folding(nn.Module):
    """Takes `[B, k, 3]` and folds the k views itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def test_views_that_are_rows_are_told_of_a_call_for_each_and_of_folding_inside_the_forward() -> None:
    def joined(training: Training, x: Tensor) -> None:
        one, two = training.model(torch.cat([x, 2 * x])).chunk(2)
        training.session.backward(squares(one - two))

    with pytest.raises(
        PrivacyUnitError, match=r"saw 16 rows for 8 examples.*2 views .*each view, or .*\[B, 2, \.\.\.\]"
    ):
        train(joined)

    def one_by_one(training: Training, x: Tensor) -> None:
        training.session.backward(squares(training.model(x) - training.model(2 * x)))
        training.optimizer.step()

    def folded(training: Training, x: Tensor) -> None:
        one, two = training.model(torch.stack([x, 2 * x], 1)).unbind(1)
        training.session.backward(squares(one - two))
        training.optimizer.step()

    torch.manual_seed(0)
    single = Folding()
    torch.manual_seed(0)
    plain = nn.Linear(3, 2)
    plain.load_state_dict(single.linear.state_dict())
    torch.manual_seed(1)
    first = train(one_by_one, plain)
    torch.manual_seed(1)
    second = train(folded, single)
    assert first.session.steps == second.session.steps == 3
    for one, other in zip(plain.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(one, other)
