"""Modes below all others: the stack keeps its order, whenever what they watched is collected."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import BaseTorchFunctionMode

from hushgrad.low_mode import LowMode
from hushgrad.torch_internals import function_modes


class Counting(LowMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.held: list[Any] = [self]

    def run(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        return func(*args, **kwargs)

    def let_go(self) -> None:
        self.held.clear()


class Loop:
    """Is collected, not freed: it refers to itself."""

    def __init__(self, mode: LowMode) -> None:
        self.itself = self
        weakref.finalize(self, mode.give_up)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    Counting().take_up()
    assert function_modes() == []


def test_a_mode_is_laid_below_the_others_and_taken_out_from_there() -> None:
    low, lower = Counting(), Counting()
    with BaseTorchFunctionMode() as above:
        low.lay_down()
        lower.lay_down()
        assert function_modes() == [lower, low, above]
        low.lay_down()
        assert function_modes() == [low, lower, above]
        low.take_up()
        assert function_modes() == [lower, above]
    assert function_modes() == [lower]
    torch.ones(1)
    assert (low.calls, lower.calls) == (0, 1)
    lower.take_up()


def test_a_mode_that_was_given_up_passes_calls_on_and_goes_with_the_next_change() -> None:
    low, other = Counting(), Counting()
    low.lay_down()
    low.give_up()
    assert function_modes() == [low]
    assert torch.ones(2).sum() == 2
    assert (low.calls, low.held) == (0, [])
    other.lay_down()
    assert function_modes() == [other]
    other.take_up()


def test_a_mode_that_is_over_lets_go_of_nothing_that_somebody_may_read() -> None:
    low = Counting()
    low.lay_down()
    low.is_over = True
    torch.ones(2)
    assert (low.calls, low.held) == (0, [low])
    low.take_up()


def test_another_thread_leaves_the_stack_alone() -> None:
    low = Counting()
    low.lay_down()
    found: list[Any] = []

    def elsewhere() -> None:
        low.lay_down()
        low.take_up()
        found.append(function_modes())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [[]]
    assert function_modes() == [low]
    low.take_up()


def _use_torch(times: int) -> list[Any]:
    """Call torch, and keep some of what is allocated: a collection begins when so much more is held than before."""
    kept = []
    for length in range(1, 1 + times):
        kept.append([F.cross_entropy(torch.ones(2, 3), torch.zeros(2, dtype=torch.long))])
        kept.append([torch.cat([torch.ones(2)] * length), torch.ones(2).relu()])
    return kept


def test_whenever_a_loop_is_collected_torch_finds_the_stack_as_it_left_it() -> None:
    """A collection after every few allocations: each abandoned loop is collected at another place of torch's own."""
    usual = gc.get_threshold()
    try:
        for allocations in range(1, 120):
            gc.collect()
            gc.disable()
            mode = Counting()
            mode.lay_down()
            Loop(mode)
            gc.set_threshold(allocations)
            gc.enable()
            kept = _use_torch(allocations)
            assert mode.is_over, len(kept)
    finally:
        gc.set_threshold(*usual)
        gc.enable()


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_mode_that_was_given_up_is_nothing_to_a_compiler(is_compiled: bool) -> None:
    low = Counting()
    low.lay_down()
    low.give_up()

    def double(x: torch.Tensor) -> torch.Tensor:
        return (x + x).relu()

    run = torch.compile(double, backend="eager", fullgraph=True) if is_compiled else double
    assert run(torch.ones(2)).tolist() == [2, 2]
