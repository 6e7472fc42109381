"""The run that others are compared with: what fails in it, or does not repeat itself, is refused."""

from __future__ import annotations

from queue import SimpleQueue

import pytest
import torch
from first_forwards import WIDTH, Body, train
from torch import Tensor, nn

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.base_run import Left, base_run
from hushgrad.guards.probing.calls import Call, Runner
from hushgrad.guards.probing.rows import Batch, batch_axes
from hushgrad.guards.probing.state import State


def test_a_part_that_a_registry_says_is_there_is_asked_for_before_training() -> None:
    """What the forward noted elsewhere cannot be taken back: the message says what to do, and that works."""
    ready: SimpleQueue[bool] = SimpleQueue()  # which nobody can look into

    class Needed(Body):
        def prepare(self, x: Tensor) -> None:
            if not ready.qsize():
                self.outputs: list[Tensor] = []
                self.first.register_forward_hook(lambda module, args, out: self.outputs.append(out))
                ready.put(True)
            self.outputs.clear()

    with pytest.raises(CrossSampleLeakError, match=r"fails when it is run again.*run one on inputs of your own"):
        train(Needed())
    ready.get()
    model = Needed()
    model(torch.zeros(1, WIDTH))
    assert train(model).session.steps == 2


class Fills(nn.Module):
    """Gives NaN for what is larger than 1e3."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.where(x > 1e3, torch.nan, x))


def begun(model: nn.Module, x: Tensor) -> tuple[Runner, Batch, Left]:
    call = Call.begun(model, model, (x,), {})
    call.returned(model(x), False, lambda: False)
    runner = Runner(call, call.state, Scope(model, UsePool()), [torch.device("cpu")])
    inputs = ((x,), {})
    return runner, Batch(inputs, batch_axes(inputs, len(x))[0], len(x)), Left(State(model), None, False)


def test_the_run_gives_what_the_call_gave() -> None:
    model, x = Fills(), torch.randn(4, 3)
    batch, outcome = base_run(*begun(model, x), "model")
    assert torch.equal(outcome.output, model(x))
    assert torch.equal(batch.value[0][0], x)


def test_examples_that_give_nan_are_replaced_and_the_others_are_as_they_were() -> None:
    x = torch.randn(4, 3)
    x[2] = 1e4
    batch, outcome = base_run(*begun(Fills(), x), "model")
    assert outcome.output.isfinite().all()
    assert torch.equal(batch.value[0][0][[0, 1, 3]], x[[0, 1, 3]])


def test_a_run_with_more_nan_than_the_call_had_is_refused() -> None:
    """What is kept out of reach has become NaN, and all runs would look alike."""
    calls: SimpleQueue[int] = SimpleQueue()

    def forward(x: Tensor) -> Tensor:
        calls.put(1)
        return x * (1.0 if calls.qsize() == 1 else torch.nan)

    class Spoils(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self.layer(x))

    with pytest.raises(CrossSampleLeakError, match="model: gives other outputs when it is run again"):
        base_run(*begun(Spoils(), torch.randn(4, 3)), "model")
