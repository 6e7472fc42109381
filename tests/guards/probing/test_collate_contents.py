"""What a batch holds beside tensors, numbers and texts is compared by what can be read of it."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hushgrad.guards.probing.collate_contents import first_other_content
from hushgrad.guards.probing.collate_runs import as_tensors


def around(number: int) -> Callable[[int], int]:
    return lambda other: number + other


def hung(number: int) -> torch.Tensor:
    tensor = torch.zeros(1)
    tensor.number = number  # type: ignore[attr-defined]
    return tensor


OTHERS: list[tuple[Callable[[int], Any], Any]] = [
    (lambda n: {n}, ()),
    (lambda n: frozenset([n]), ()),
    (lambda n: datetime.date(2020, 1, n), ()),
    (lambda n: complex(0, n), ()),
    (around, ()),
    (lambda n: partial(max, n), ()),
    (lambda n: iter([n]), ()),
    (lambda n: {"a": 1, "b": 1} if n == 1 else {"b": 1, "a": 1}, ()),
    (lambda n: {"a": [{n}]}, ("a", 0)),
    (lambda n: SimpleNamespace(k=b"a" * n), ("k",)),
    (lambda n: None if n == 1 else int, ()),
    (hung, ("its attributes",)),
    (lambda n: torch.zeros(1, requires_grad=n == 1), ()),
    (lambda n: np.array([{n}], dtype=object), (0,)),
]


@pytest.mark.parametrize(("make", "place"), OTHERS)
def test_a_part_is_the_same_where_it_holds_the_same_and_another_where_it_does_not(
    make: Callable[[int], Any], place: Any
) -> None:
    assert first_other_content(as_tensors(make(1)), as_tensors(make(1))) is None
    assert first_other_content(as_tensors(make(1)), as_tensors(make(2))) == place


def test_what_is_compared_is_what_a_part_held_as_the_batch_was_made() -> None:
    again: set[int] = {1}
    batch = as_tensors([again])
    again.add(2)
    assert first_other_content(batch, as_tensors([{1}])) is None


def test_what_cannot_be_looked_into_is_said() -> None:
    batch = as_tensors([(number for number in range(3))])
    assert "cannot be looked into" in batch[0].unread[0]
