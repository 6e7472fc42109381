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

    def run(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls += 1
        return func(*args, **kwargs)


class Loop:
    """Is collected, not freed: it refers to itself."""

    def __init__(self) -> None:
        self.itself = self
        self.mode = Counting()
        self.mode.lay_down()


def owners() -> list[Any]:
    """Return whose modes the stack holds, and others as they are."""
    return [getattr(mode, "owner", mode) for mode in function_modes()]


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
        assert owners() == [lower, low, above]
        assert Counting.here() == [lower, low]
        low.lay_down()
        assert owners() == [low, lower, above]
        low.take_up()
        assert owners() == [lower, above]
    assert owners() == [lower]
    torch.ones(1)
    assert (low.calls, lower.calls) == (0, 1)
    lower.take_up()


def test_what_the_stack_holds_keeps_nobody_alive_passes_calls_on_and_goes_with_the_next_change() -> None:
    low, other = Counting(), Counting()
    low.lay_down()
    gone = weakref.ref(low)
    del low
    assert gone() is None
    assert owners() == [None]
    assert torch.ones(2).sum() == 2
    assert Counting.here() == []
    other.lay_down()
    assert owners() == [other]
    other.take_up()


def test_a_mode_that_is_over_passes_calls_on() -> None:
    low = Counting()
    low.lay_down()
    low.end_runs()
    torch.ones(2)
    assert low.calls == 0
    assert Counting.here() == []
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
    assert owners() == [low]
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
            gone = weakref.ref(Loop().mode)
            gc.set_threshold(allocations)
            gc.enable()
            kept = _use_torch(allocations)
            assert gone() is None, len(kept)
    finally:
        gc.set_threshold(*usual)
        gc.enable()


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_mode_whose_owner_was_collected_is_nothing_to_a_compiler(is_compiled: bool) -> None:
    low = Counting()
    low.lay_down()
    del low

    def double(x: torch.Tensor) -> torch.Tensor:
        return (x + x).relu()

    run = torch.compile(double, backend="eager", fullgraph=True) if is_compiled else double
    assert run(torch.ones(2)).tolist() == [2, 2]
