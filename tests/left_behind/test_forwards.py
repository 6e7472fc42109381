"""Whatever happens in a forward or a backward: nothing is left behind.

Of each program it is asked that torch's stack of function modes is what it was, that an unrelated layer trains, and
that private training goes on exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from exact_training import (
    B,
    Net,
    OwnError,
    Stop,
    Training,
    batch,
    losses,
    nothing_left,
    raising,
    require_ordinary_training,
)
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack


@pytest.mark.parametrize("kind", [OwnError, RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit, Stop])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_forward_that_is_left_by_an_exception_leaves_no_mode(kind: type[BaseException], is_first: bool) -> None:
    training = Training()
    if not is_first:
        training.require_exact_step()
    training.model.between = [raising(kind)]
    with nothing_left():
        try:
            training.model(batch())
            raise AssertionError
        except kind:
            pass
        training.model.between = []
    training.require_exact_step()


def test_while_the_exception_of_a_left_forward_is_held_calls_pass_through_untouched() -> None:
    training = Training(Net(raising(KeyboardInterrupt)))
    x = batch()
    with pytest.raises(KeyboardInterrupt) as held:
        training.model(x)
    require_ordinary_training()
    x -= x.mean(0)  # a tensor that the forward knew
    x.mul_(other := torch.ones(B, 1, dtype=torch.float64))
    assert other.sum() == B
    training.model.between = []
    training.require_exact_step()
    del held
    assert _get_current_function_mode_stack() == []


def test_a_part_left_by_a_base_exception_that_the_forward_catches_changes_nothing() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6).double()

        def forward(self, h: Tensor) -> Tensor:
            self.layer(h)
            raise Stop

    def between(m: Net, h: Tensor) -> Tensor:
        try:
            return m.inner(h)  # type: ignore[no-any-return]
        except Stop:
            return h

    model = Net(between)
    model.inner = Inner()
    training = Training(model)
    with nothing_left():
        training.require_exact_step()


def test_a_generator_that_runs_layers_may_be_closed_early() -> None:
    def between(m: Net, h: Tensor) -> Tensor:
        def rows() -> Iterator[Tensor]:
            try:
                while True:
                    yield m.c(h)
            finally:
                m.c(h)

        found = rows()
        first = next(found)
        found.close()
        return h + first

    model = Net(between)
    model.c = nn.Linear(6, 6).double()
    with nothing_left():
        Training(model).require_exact_step()


def test_a_pre_hook_that_raises_before_ours_leaves_nothing() -> None:
    def refuse(module: nn.Module, args: Any) -> None:
        if is_refusing:
            raise OwnError

    model = Net()
    handles = [part.register_forward_pre_hook(refuse) for part in (model, model.b)]
    training = Training(model)
    for handle in handles[1:], handles[:1]:
        is_refusing = True
        with nothing_left(), pytest.raises(OwnError):
            model(batch())
        is_refusing = False
        training.require_exact_step()
        handle[0].remove()


def test_hooks_that_are_taken_away_during_a_forward_leave_nothing() -> None:
    training = Training(Net(lambda m, h: (training.session.close(), h)[1]))
    with nothing_left():
        training.model(batch())
    training.model.between = []
    losses(training.model(batch())).sum().backward()  # an ordinary model again
    assert all(parameter.grad is not None for parameter in training.model.parameters())


def test_a_hook_that_hands_on_other_arguments_changes_nothing() -> None:
    model = Net()
    training = Training(model)
    model.register_forward_pre_hook(lambda module, args, kwargs: (args, dict(kwargs)), with_kwargs=True)
    with nothing_left():
        training.require_exact_step()


def test_what_a_backward_raises_leaves_nothing() -> None:
    def refuse(gradient: Tensor) -> None:
        raise OwnError

    def between(m: Net, h: Tensor) -> Tensor:
        h.register_hook(refuse)
        return h

    training = Training()
    training.require_exact_step()
    training.model.between = [between]
    with nothing_left(), pytest.raises(OwnError):
        training.backward(batch())
    training.model.between = []
    training.session.discard()
    training.require_exact_step()
