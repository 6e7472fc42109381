"""Whether a later call shows what no examined one did: another length, or records of different lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.novelty import MUCH, SHORT, Extremes, Novelty, Spread

MODULE, OTHER = nn.Identity(), nn.Identity()
AXES = {(0, 0): 0}


def given(value: Tensor) -> tuple[Any, ...]:
    return (value,), {}


def ids(*lengths: int, width: int = 10) -> Tensor:
    """Ids of records of these lengths, padded with zeros on the right."""
    return torch.tensor([[*range(1, length + 1), *[0] * (width - length)] for length in lengths])


def test_an_item_is_new_if_its_size_or_longest_record_goes_beyond_all_before() -> None:
    extremes = Extremes()
    items = [(8, [3, 5]), (8, [5, 4]), (9, [1]), (7, [1]), (8, [6]), (8, []), (9, [6]), (10, [])]
    assert [extremes.note(*item) for item in items] == [True, False, True, True, True, False, False, True]


def test_few_items_of_many_go_beyond_all_before() -> None:
    """Of fixed draws: 13 on average of 1,000 items of some 64 records."""
    numbers = np.random.default_rng(0)
    lengths = numbers.integers(5, 400, 10_000)
    found = []
    for _ in range(5):
        extremes = Extremes()
        sizes = np.maximum(1, numbers.poisson(64, 1_000))
        found.append(sum(extremes.note(int(n), lengths[numbers.integers(0, 10_000, n)].tolist()) for n in sizes))
    assert np.mean(found) < 16


def test_an_input_that_is_shorter_than_the_item_by_more_than_a_shift_is_cut_to_a_constant() -> None:
    novelty, module = Novelty(), nn.Linear(1, 1)
    for width, length in ((9, 9), (9, 8), (7, 7), (9, 5)):
        novelty.note(module, ((torch.zeros(2, length),), {}), {}, {width})
    novelty.note(module, ((torch.zeros(2, 12),), {}), {}, {9})  # made longer
    novelty.note(module, ((torch.zeros(2, 3),), {}), {})
    assert novelty.cuts == {5}


def test_a_first_call_and_calls_like_it_show_nothing_new() -> None:
    novelty = Novelty()
    for _ in range(3):
        assert not novelty.note(MODULE, given(torch.randn(4, 10, 2)), AXES)
        assert not novelty.note(MODULE, given(ids(10, 10)), AXES)
    assert novelty.varying(MODULE, given(torch.randn(4, 10, 2))) == set()


def test_another_length_is_new_until_it_was_examined_and_never_again() -> None:
    novelty = Novelty()
    novelty.note(MODULE, given(torch.randn(4, 10, 2)), AXES)
    assert novelty.note(MODULE, given(torch.randn(4, 7, 2)), AXES)
    assert novelty.note(MODULE, given(torch.randn(4, 10, 2)), AXES)  # still to be looked at
    novelty.examined(MODULE)
    for width in (7, 10, 3):
        assert not novelty.note(MODULE, given(torch.randn(4, width, 2)), AXES)
    assert novelty.note(MODULE, given(torch.randn(4, 7, 5)), AXES)  # the other axis


def test_another_number_of_examples_is_nothing_new() -> None:
    novelty = Novelty()
    for size in (4, 1, 9):
        assert not novelty.note(MODULE, given(torch.randn(size, 10)), AXES)
    second = Novelty()
    for size in (4, 1, 9):
        assert not second.note(MODULE, given(torch.randn(10, size)), {(0, 0): 1})


def test_axes_whose_length_is_not_always_the_same_are_told_by_their_length_in_a_call() -> None:
    novelty = Novelty()
    novelty.note(MODULE, given(torch.randn(4, 10, 2)), AXES)
    novelty.note(MODULE, given(torch.randn(4, 7, 2)), AXES)
    assert novelty.varying(MODULE, given(torch.randn(4, 6, 2))) == {6}
    assert novelty.varying(OTHER, given(torch.randn(4, 6, 2))) == set()


def test_modules_and_inputs_are_told_apart() -> None:
    novelty = Novelty()
    novelty.note(MODULE, given(torch.randn(4, 10)), AXES)
    assert not novelty.note(OTHER, given(torch.randn(4, 7)), AXES)
    assert not novelty.note(MODULE, ((), {"mask": torch.randn(4, 7)}), {((1), "mask"): 0})
    assert novelty.note(MODULE, given(torch.randn(4, 7)), AXES)
    assert not novelty.note(OTHER, given(torch.randn(4, 7)), AXES)
    novelty.examined(OTHER)
    assert novelty.note(MODULE, given(torch.randn(4, 10)), AXES)


def test_records_of_different_lengths_for_once_are_new_and_again_where_one_is_much_shorter() -> None:
    novelty = Novelty()
    assert not novelty.note(MODULE, given(ids(10, 9)), AXES)  # not by much: 0.9 of the longest
    assert novelty.note(MODULE, given(ids(10, 6)), AXES)
    novelty.examined(MODULE)
    assert not novelty.note(MODULE, given(ids(10, 6)), AXES)
    assert not novelty.note(MODULE, given(ids(10, 5)), AXES)
    assert 5 / 6 > MUCH > 4 / 6
    assert novelty.note(MODULE, given(ids(10, 4)), AXES)
    novelty.examined(MODULE)
    assert not novelty.note(MODULE, given(ids(10, 10)), AXES)


def test_looks_for_shorter_records_come_to_an_end() -> None:
    """Each is due at 3/4 of the last one at most, and none beyond a twentieth: a dozen looks, however long it runs."""
    novelty, due = Novelty(), 0
    for length in range(200, 0, -1):
        due += novelty.note(MODULE, given(ids(200, length, width=201)), AXES)
        novelty.examined(MODULE)
    assert 5 < due <= 12
    assert MUCH**12 < SHORT


def test_lengths_of_records_are_read_of_rows_of_whole_numbers_alone() -> None:
    for value, axes in (
        (ids(10, 3).float(), AXES),
        (ids(10, 3).T.contiguous(), {(0, 0): 1}),
        (ids(10, 3)[:, :, None], AXES),
        (ids(10, 3), {}),
        (ids(10, 3) + 0j, AXES),
        (torch.zeros(0, 4, dtype=torch.long), AXES),
    ):
        assert not Novelty().note(MODULE, given(value), axes)
    assert Novelty().note(MODULE, given(ids(10, 3)), AXES)


def test_the_first_batch_of_different_lengths_is_new_and_later_one_with_a_much_shorter_record() -> None:
    spread = Spread()
    batches = [[], [8], [8, 8], [0, 0], [12, 15], [12, 15], [10, 15], [8, 15], [15, 15], [1, 100], [1, 1000]]
    assert [spread.note(lengths) for lengths in batches] == [*[False] * 4, True, False, False, True, False, True, False]
