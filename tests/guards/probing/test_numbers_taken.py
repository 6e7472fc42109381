"""Whether an argument is made of a number that left torch: told by its value."""

from __future__ import annotations

import math

import pytest
import torch

from hushgrad.guards.probing.numbers_taken import is_made_of, numbers_in

TAKEN = 1.7320508075


@pytest.mark.parametrize(
    "value", [TAKEN, 1 / TAKEN, 0.3 + 0.7 * TAKEN, math.log1p(TAKEN), TAKEN + 1e-8, 0.3 / (0.7 + TAKEN)]
)
def test_simple_functions_of_a_number_are_known_again(value: float) -> None:
    assert is_made_of(TAKEN, (value,), {}, (0.3, 0.7))


def test_sums_and_means_of_a_list_are_known_again() -> None:
    assert is_made_of([3, 4, 6], (13.0,), {}, ())
    assert is_made_of(torch.Size([17]), ("x",), {"by": 17}, ())


def test_numbers_that_are_written_in_the_code_or_usual_are_nobodys() -> None:
    assert not is_made_of(17, (17, 2, 1.0), {}, (17,))
    assert not is_made_of(TAKEN, (0.123456,), {}, (0.3, 0.7))


def test_numbers_are_found_in_nested_values_and_arrays() -> None:
    assert list(numbers_in((1, [2.5, {"a": torch.tensor([3.0, 4.0])}], True, "5", float("inf")))) == [1, 2.5, 3, 4]
