"""One model in several threads: each has a capture of its own, and training is exact."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_training import (
    B,
    C,
    Net,
    OwnError,
    Stop,
    Training,
    batch,
    losses,
    nothing_left,
    raising,
    require_ordinary_training,
    richer_net,
)
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import (
    PrivacyUnitError,
    UncoveredParameterUseError,
)
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time


def in_thread(run: Callable[[], Any]) -> list[Any]:
    """Run a function in another thread to its end; return what it returned or raised, and the modes it left there."""
    found: list[Any] = []

    def body() -> None:
        try:
            found.append(run())
        except BaseException as error:
            found.append(error)
        found.append(len(_get_current_function_mode_stack()))
        require_ordinary_training()
        found.append("trains")

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return found


def _shown(model: nn.Module, *, no_grad: bool) -> Tensor:
    """Run the model, which calls nothing of the test's meanwhile."""
    with torch.set_grad_enabled(not no_grad):
        return model(torch.ones(3, 4, dtype=torch.float64)).detach()


@pytest.mark.parametrize("no_grad", [True, False])
@pytest.mark.parametrize("times", [1, 3])
def test_another_thread_may_run_the_model_in_the_middle_of_a_forward(no_grad: bool, times: int) -> None:
    """Guarantee: threads that run one model at the same time do not see each other's modes."""
    results: list[list[Any]] = []

    def between(m: Net, h: Tensor) -> Tensor:
        if threading.current_thread() is threading.main_thread():
            for _ in range(times):
                results.append(in_thread(lambda: _shown(m, no_grad=no_grad)))
        return h

    training = Training()
    training.require_exact_step()
    training.model.between = [between]
    with nothing_left():
        alone = copy.deepcopy(training.model)
        alone.between = []
        shown = _shown(alone, no_grad=True)
        training.backward(batch())
    assert len(results) >= times  # more where the probe looks at this batch
    for value, modes, end in results:
        torch.testing.assert_close(value, shown)
        assert (modes, end) == (0, "trains")
    training.session.discard()
    training.model.between = []
    training.require_exact_step()


@pytest.mark.parametrize("no_grad", [True, False])
def test_another_thread_may_be_in_the_middle_of_a_forward_while_a_step_is_done(no_grad: bool) -> None:
    inside, done = threading.Event(), threading.Event()

    def between(m: Net, h: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert done.wait(60)
        return h

    training = Training()
    training.require_exact_step()
    training.model.between = [between]
    modes = []

    def other() -> None:
        _shown(training.model, no_grad=no_grad)
        modes.append(len(_get_current_function_mode_stack()))

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(60)
    training.model.between = []  # the other thread is in it already, and copies of the model do not wait
    try:
        with nothing_left():
            training.require_exact_step()
    finally:
        done.set()
        thread.join()
    assert modes == [0]
    training.require_exact_step()


def test_what_another_thread_raises_in_the_model_stays_there() -> None:
    training = Training()
    training.require_exact_step()
    for kind in (OwnError, KeyboardInterrupt, Stop):
        training.model.between = [raising(kind)]
        with nothing_left():
            error, _, end = in_thread(lambda: training.model(batch()))
        assert isinstance(error, kind)
        assert end == "trains"
        training.model.between = []
        training.require_exact_step()


def test_a_transform_in_another_thread_is_refused_there() -> None:
    training = Training()
    training.require_exact_step()
    with nothing_left():
        error, modes, end = in_thread(lambda: torch.func.vmap(training.model)(batch()))
    assert isinstance(error, UncoveredParameterUseError)
    assert (modes, end) == (0, "trains")
    training.require_exact_step()


def test_training_may_run_in_a_thread_of_its_own() -> None:
    training = Training()
    with nothing_left():
        assert in_thread(lambda: [training.require_exact_step() for _ in range(2)])[1:] == [0, "trains"]
        training.require_exact_step()


def test_a_backward_may_run_in_another_thread_than_its_forward() -> None:
    training = Training()
    x, alone = batch(), copy.deepcopy(training.model)
    expected = clipped_sum_of(
        one_at_a_time(alone, [lambda i=i: losses(alone(x[i : i + 1])).sum() for i in range(B)]), FlatClipping(C)
    )
    before = {name: parameter.detach().clone() for name, parameter in training.model.named_parameters()}
    with nothing_left():
        out = losses(training.model(x))
        assert in_thread(lambda: training.session.backward(out)) == [None, 0, "trains"]
        training.optimizer.step()
    for name, parameter in training.model.named_parameters():
        torch.testing.assert_close(before[name] - parameter, expected[name] / B, rtol=1e-9, atol=1e-11)


def test_parts_that_a_forward_runs_in_threads_are_captured_or_refused() -> None:
    def between(m: Net, h: Tensor) -> Tensor:
        found = in_thread(lambda: m.c(h))
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]  # type: ignore[no-any-return]

    training = Training(richer_net(between))
    with nothing_left(), pytest.raises(PrivacyUnitError, match="cannot be told apart"):
        training.backward(batch())
    training.session.discard()
    training.model.between = []
    training.require_exact_step()
