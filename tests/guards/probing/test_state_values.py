"""Values that are kept are compared and put back by their kind; clocks and addresses are told from data."""

from __future__ import annotations

import array
import ctypes
import datetime
import io
import random
import uuid
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hushgrad.guards.probing.state_values import (
    LARGE,
    agree,
    copy_of,
    differs_by_itself,
    fingerprint,
    is_atom,
    saved_copy,
    write,
)


class Level(Enum):
    LOW, HIGH = 1, 2


ATOMS = [
    "a", b"a", 1, 1.0, None, np.float32(1), np.int64(1), Fraction(1, 3), Decimal("1.5"), Level.LOW, frozenset({1.0}),
    (1, ("a", b"b")), datetime.date(2020, 1, 1), datetime.timedelta(1), torch.float32, torch.Size([1]), range(3),
]  # fmt: skip


@pytest.mark.parametrize("value", ATOMS, ids=repr)
def test_what_never_changes_is_compared_by_value_and_type(value: Any) -> None:
    assert is_atom(value)
    assert agree(value, copy_of(value))
    assert not any(agree(value, other) for other in ATOMS if other is not value)


def advanced(iterator: Any) -> Any:
    next(iterator)
    return iterator


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "a tensor": (lambda: torch.ones(2), lambda v: v.add_(1)),
    "an array": (lambda: np.ones(2), lambda v: v.fill(2)),
    "bytes": (lambda: bytearray(b"ab"), lambda v: v.extend(b"c")),
    "numbers": (lambda: array.array("d", [1.0]), lambda v: v.append(2.0)),
    "a text": (lambda: io.StringIO("a"), lambda v: v.write("bcd")),
    "torch's generator": (torch.Generator, lambda v: torch.rand(1, generator=v)),
    "Python's generator": (lambda: random.Random(1), lambda v: v.random()),
    "NumPy's generator": (lambda: np.random.default_rng(1), lambda v: v.random()),
    "NumPy's old generator": (lambda: np.random.RandomState(1), lambda v: v.rand()),
    "an iterator": (lambda: iter([1, 2]), next),
    "a number of C": (lambda: ctypes.c_double(1.0), lambda v: setattr(v, "value", 2.0)),
    "an array of C": (lambda: (ctypes.c_int * 2)(1, 2), lambda v: v.__setitem__(1, 3)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_in_its_place_is_told_and_put_back(name: str) -> None:
    make, change = CHANGES[name]
    value = make()
    assert not is_atom(value)
    copied = copy_of(value)
    assert agree(value, copied)
    change(value)
    assert not agree(value, copied)
    write(value, copied)
    assert agree(value, copied)


@pytest.mark.parametrize(
    ("values", "other"),
    [
        (torch.arange(4.0), torch.arange(4.0).flip(0)),
        (torch.ones(3, dtype=torch.cfloat), torch.ones(3, dtype=torch.cfloat) * 1j),
        (torch.arange(400_000.0), torch.arange(400_000.0).roll(1 << 17)),
        (torch.zeros(3), torch.tensor([0.0, torch.nan, 0.0])),
    ],
)
def test_a_fingerprint_tells_other_values_and_values_in_other_places(values: torch.Tensor, other: torch.Tensor) -> None:
    assert fingerprint(values) == fingerprint(values.clone())
    assert fingerprint(values) != fingerprint(other)


def test_a_parameter_that_is_no_part_of_the_model_is_compared_by_its_fingerprint() -> None:
    parameter = nn.Parameter(torch.ones(3))
    copied = copy_of(parameter)
    assert agree(parameter, copied)
    with torch.no_grad():
        parameter[0] = 2
    assert not agree(parameter, copied)


def test_a_large_tensor_is_not_copied_and_a_write_to_it_is_told() -> None:
    large = torch.zeros(1, dtype=torch.int8).expand(LARGE)
    assert isinstance(saved_copy(large, is_buffer=True), torch.Tensor)
    copied = saved_copy(large, is_buffer=False)
    assert not isinstance(copied, torch.Tensor)
    assert agree(large, copied)
    large[:1].add_(1)
    assert not agree(large, copied)


@pytest.mark.parametrize(
    ("samples", "changed", "itself"),
    [
        ([10.00, 10.01, 10.02], 10.03, True),  # a clock
        ([0.001, 0.003, 0.002], 0.02, True),  # a duration
        ([10.00, 10.01, 10.02], 500.0, False),  # and a value of the data added to it
        ([3.0, 3.0, 3.0], 3.1, False),
        ([0x7F00, 0x7F80, 0x8000], 0x8100, True),  # an address
        (["at 1.01 of x", "at 1.02 of x"], "at 1.03 of x", True),
        (["at 1.01 of 5", "at 1.02 of 5"], "at 1.03 of 7", False),
        (["at 1.01", "at 1.02"], "on 1.03", False),
        ([(1.01, 5), (1.02, 5)], (1.03, 5), True),
        ([(1.01, 5), (1.02, 5)], (1.03, 7), False),
        ([(1.0,), (1.1,)], (1.0, 1.1), False),
        ([None, 1.0], 1.0, False),
        ([uuid.UUID(int=1), uuid.UUID(int=2)], uuid.UUID(int=9), True),
    ],
)
def test_what_differs_from_run_to_run_of_one_batch_is_no_state_and_the_rest_is(
    samples: list[Any], changed: Any, itself: bool
) -> None:
    assert differs_by_itself(samples, changed) is itself
