"""The tensors that a forward is given, by their paths, and the lists among them that hold an entry for each example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hushgrad.capture.axes.layout import Role
from hushgrad.capture.axes.parts import lists_in, named_tensors

A, C = torch.zeros(2), torch.ones(3)


@dataclass
class Pair:
    left: Any
    right: Any


class Graph:
    def __init__(self) -> None:
        self.x, self.kept, self.count = A, {"y": C}, 3


def test_tensors_are_found_in_containers_dataclasses_and_objects_by_their_paths() -> None:
    assert dict(named_tensors(((A, [C]), {"k": Pair(A, None)}))) == {
        (0, 0): A, (0, 1, 0): C, (1, "k", "left"): A,
    }  # fmt: skip
    assert dict(named_tensors(Graph())) == {("x",): A, ("kept", "y"): C}


def test_modules_texts_and_numbers_are_not_opened() -> None:
    assert not list(named_tensors([torch.nn.Linear(2, 2), "text", 3, None, torch.Generator()]))


def test_a_list_with_an_entry_for_each_example_is_found_and_the_arguments_are_none() -> None:
    entries = [torch.zeros(5), torch.zeros(4)]
    assert list(lists_in(((entries, A), {}), 2, {})) == [((0, 0), entries)]
    targets = [{"boxes": A}, {"boxes": C}]
    assert list(lists_in(((), {"targets": targets}), 2, {})) == [((1, "targets"), targets)]
    assert not list(lists_in(((entries, A), {}), 3, {}))


def test_tensors_that_hold_the_whole_batch_each_are_no_entries_unless_that_is_known() -> None:
    both = [torch.zeros(2, 3), torch.zeros(2, 3)]
    assert not list(lists_in(((both,), {}), 2, {}))
    assert list(lists_in(((both,), {}), 2, {(0, 0): Role.ENTRIES})) == [((0, 0), both)]
    states = (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))  # of an LSTM, for two examples
    assert not list(lists_in(((states,), {}), 2, {}))
