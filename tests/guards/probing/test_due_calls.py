"""A model is due until it was examined on several examples, and once it has changed; else some calls are looked at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.due_calls import DueCalls
from hushgrad.guards.probing.kept_calls import Pending
from hushgrad.guards.probing.looks import Looks

B = 4


class Batches:
    """Calls of one model, batch after batch."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
        self.looks = Looks(None)
        self.calls = DueCalls(self.model, list(self.model.parameters()), self.looks)

    def call(self, x: Tensor | None = None) -> Pending | None:
        x = torch.randn(B, 3) if x is None else x
        pending = self.calls.begun(self.model, (x,), {}, frozenset())
        output = self.model(x)
        if pending is not None:
            pending.call.returned(output, False, lambda: True)
        return pending

    def examine(self, size: int = B, *, is_shown: bool = True) -> int:
        """End the batch; return how many calls were examined."""
        whole = self.calls.whole(size)
        assert self.calls.are_any(size) == bool(whole or self.calls.in_part(size))
        for part in whole:
            self.calls.examined(part, is_shown=is_shown)
        self.calls.forget()
        return len(whole)


@pytest.fixture
def batches() -> Batches:
    return Batches()


def test_a_model_is_due_until_it_was_examined_on_several_examples(batches: Batches) -> None:
    assert not batches.calls.is_never_examined  # it has not run
    batches.call()
    assert batches.examine(1, is_shown=False) == 1
    assert batches.calls.is_never_examined
    batches.call()
    assert batches.examine(1) == 0  # one example shows no more than the last one did
    batches.call()
    assert batches.examine() == 1
    assert (batches.calls.is_examined, batches.calls.is_never_examined) == (True, False)
    assert batches.call() is None
    assert batches.calls.count == 1
    assert batches.examine() == 0


def test_a_model_that_has_changed_is_due_again_and_as_it_was_it_is_not(batches: Batches) -> None:
    batches.call()
    batches.examine()
    hook = batches.model[0].register_forward_hook(lambda module, args, output: output)
    batches.call()
    assert batches.examine() == 1
    hook.remove()
    batches.call()
    assert batches.examine() == 0


def test_a_model_is_due_again_when_what_was_frozen_is_trained(batches: Batches) -> None:
    frozen = batches.model[0].weight
    frozen.requires_grad_(False)
    for expected in (1, 0):
        batches.call()
        assert batches.examine() == expected
    frozen.requires_grad_(True)
    for expected in (1, 0):
        batches.call()
        assert batches.examine() == expected


def test_a_call_of_an_examined_model_is_looked_at_on_several_examples_only(batches: Batches) -> None:
    batches.call()
    batches.examine()
    batches.looks.wanted = True
    pending = batches.call()
    assert pending is not None
    assert (batches.calls.whole(B), batches.calls.in_part(B), batches.calls.in_part(1)) == ([], [pending], [])


def test_a_call_that_failed_is_not_due(batches: Batches) -> None:
    assert batches.calls.begun(batches.model, (torch.randn(B, 3),), {}, frozenset()) is not None
    assert not batches.calls.are_any(B)
    assert batches.calls.rows_to_compare(B, lambda module, args, kwargs: {}) == []


@pytest.mark.parametrize(("row", "expected"), [(0, [0, 1]), (2, [2, 0])])
def test_the_largest_example_and_another_one_are_compared(batches: Batches, row: int, expected: list[int]) -> None:
    x = torch.ones(B, 3)
    x[row] = 9.0
    batches.call(x)
    assert batches.calls.rows_to_compare(B, lambda module, args, kwargs: {}) == expected
    assert batches.calls.rows_to_compare(1, lambda module, args, kwargs: {}) == []
    assert [len(batches.calls.of_size(size)) for size in (B, B + 1)] == [1, 0]
