"""A traced call's place is the line of the loop's, not of the library or of torch that it runs through."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor

from hushgrad.guards.probing.trace_places import APPLY, CRITERIA, function_call, place_of, running
from hushgrad.losses import PerExampleLoss


def asked() -> Any:
    """As a mode does: what runs is two frames above the question."""
    return running()


def test_the_line_of_the_loop_is_told() -> None:
    line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
    place, applied = asked()
    assert (place.file, place.line) == ("test_trace_places.py", line)
    assert applied is None


def test_an_autograd_function_of_the_loops_is_told_with_its_arguments() -> None:
    found: list[Any] = []

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            place, applied = asked()
            found.append((place.file, applied.f_code, asked_call(applied)))
            return 2 * x

    def asked_call(applied: Any) -> Any:
        return function_call(applied)[1:]

    x = torch.ones(2)
    Doubled.apply(x)  # type: ignore[no-untyped-call]
    [(file, code, (cls, args, kwargs))] = found
    assert file == "test_trace_places.py"
    assert code is APPLY
    assert cls is Doubled
    assert args[0] is x
    assert not kwargs


def test_numbers_written_in_the_code_are_part_of_a_place() -> None:
    scale = 0.25
    assert scale in place_of(sys._getframe()).numbers


def test_a_call_within_the_librarys_own_criterion_has_the_line_that_calls_it() -> None:
    found: list[Any] = []

    def losses(out: Tensor) -> Tensor:
        frame = sys._getframe()
        while frame.f_code.co_filename != CRITERIA:
            assert frame.f_back is not None
            frame = frame.f_back
        found.append(place_of(frame))
        return out.sum(1)

    criterion = PerExampleLoss(losses, loss_reduction="mean", batch_size=lambda: 2)
    line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
    criterion(torch.ones(2, 2))
    assert (found[0].file, found[0].line, found[0].is_criterions) == ("test_trace_places.py", line, True)
