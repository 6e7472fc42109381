"""Values are told from others by what they hold, large ones by which they are, and nothing is held of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hushgrad.guards.probing.settings import MOST_VALUES, changed, told

MANY = 3 * MOST_VALUES


@pytest.mark.parametrize("size", [5, MANY])
def test_a_write_in_its_place_is_told_of_tensors_and_small_arrays(size: int) -> None:
    tensor, array = torch.zeros(size), np.zeros(size)
    before = told(tensor), told(array)
    assert before == (told(tensor), told(array))
    tensor[size // 2] = 1
    array[:] = 1
    assert told(tensor) != before[0]
    assert told(array) != before[1]


@pytest.mark.parametrize("make", [torch.zeros, np.zeros])
def test_a_large_one_in_the_place_of_another_is_told_whatever_few_values_differ(make: Callable[..., Any]) -> None:
    one, other = make(MANY), make(MANY)
    other[1] = 1  # none of those that are looked at
    assert told(one) != told(other)
    assert told(make(4)) == told(make(4))


@pytest.mark.parametrize("value", [3, 0.5, "a", (1, -1), None, frozenset({2})])
def test_values_that_never_change_are_told_by_what_they_are(value: Any) -> None:
    assert told(value) == told(value)
    assert told(value) != told((value, 1))
    assert told(-1) != told(-2)


def test_tensors_of_every_layout_are_looked_at() -> None:
    tensors: list[Tensor] = [
        torch.zeros(3, 4).t(),
        torch.zeros(0),
        torch.zeros(3, device="meta"),
        torch.zeros(200, 300).t(),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.ones(3, dtype=torch.complex64).conj().imag,
        torch.tensor(1.0),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
        torch.zeros(3, 4).to_sparse(),
    ]
    assert all(told(tensor) == told(tensor) for tensor in tensors)


def test_places_of_attributes_count_where_they_come_or_go_and_deep_ones_where_they_are_in_both() -> None:
    near, deep = ("a", "b"), ("a", "b", "c", "d")
    assert changed({near: 1}, {}) == {near}
    assert changed({deep: 1}, {}) == set()
    assert changed({deep: 1, near: 2}, {deep: 3, near: 2}) == {deep}
