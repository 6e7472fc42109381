"""Where in the user's model an operator was called, for messages."""

from __future__ import annotations

import sys

from torch import Tensor, nn

from hushgrad.capture.source_line import calling_forward


class Inner(nn.Module):
    def forward(self, told: list[str]) -> None:
        told.append(calling_forward())
        self.line = sys._getframe().f_lineno - 1


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, told: list[str]) -> None:
        self.inner(told)
        told.append(calling_forward())


class NoModule:
    def forward(self) -> str:
        return calling_forward()


def test_the_innermost_forward_that_is_running_is_named_with_its_file_and_line() -> None:
    outer, told = Outer(), []
    outer(told)
    assert told[0] == f" in Inner.forward (test_source_line.py, line {outer.inner.line})"
    assert told[1].startswith(" in Outer.forward (test_source_line.py, line ")


def test_outside_of_any_forward_nothing_is_said() -> None:
    assert calling_forward() == ""


def test_a_forward_that_is_no_modules_is_passed_over() -> None:
    class Calls(nn.Module):
        def forward(self, x: Tensor | None) -> str:
            return NoModule().forward()

    assert NoModule().forward() == ""
    assert Calls()(None).startswith(" in Calls.forward (")
