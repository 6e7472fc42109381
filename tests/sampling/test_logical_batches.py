"""A pass as its logical batches: lazy, each once, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from hushgrad.errors import ProtocolError
from hushgrad.randomness import KeyStream
from hushgrad.sampling.disjoint import DisjointBatches
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.poisson import PoissonSampling


def loader_of(sizes: Sequence[int], rows: int, steps: int | None = None) -> PrivateLoader:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    batches = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    return PrivateLoader(
        TensorDataset(torch.arange(max(sum(sizes), 1))),
        DisjointBatches(),
        steps_per_pass=steps or len(sizes),
        stream=KeyStream.fixed_for_tests(1),
        batch_size=4,
        batches=batches,
        max_physical_batch_size=rows,
    )


def records(item: Any) -> list[int]:
    return [int(value) for value in item[0]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_the_items_of_the_logical_batches_are_those_of_the_loader(sizes: list[int], rows: int) -> None:
    whole = [records(item) for item in loader_of(sizes, rows)]
    parts = [[records(item) for item in batch] for batch in loader_of(sizes, rows).logical_batches()]
    assert [item for batch in parts for item in batch] == whole
    assert [sum(map(len, batch)) for batch in parts] == sizes


def test_there_are_as_many_logical_batches_as_the_loader_is_long_whatever_is_drawn() -> None:
    """Empty draws included: the number of steps shows nothing of the draws."""
    loader = PrivateLoader(
        TensorDataset(torch.arange(20)),
        PoissonSampling(0.05),
        steps_per_pass=50,
        stream=KeyStream.fixed_for_tests(2),
        max_physical_batch_size=1,
    )
    counts = [len(list(batch)) for batch in loader.logical_batches()]
    assert len(counts) == len(loader) == 50
    assert max(counts) > 1


def test_a_logical_batch_that_is_only_held_draws_nothing() -> None:
    """A loop that looks one batch ahead (to know which is the last) stays in turn."""
    batches = list(loader_of([2, 3], 2).logical_batches())
    assert [[records(item) for item in batch] for batch in batches] == [[[0, 1]], [[2, 3], [4]]]


def test_a_logical_batch_is_iterated_over_once() -> None:
    first = next(loader_of([3, 3], 2).logical_batches())
    assert len(list(first)) == 2
    with pytest.raises(ProtocolError, match="drawn once"):
        next(iter(first))


@pytest.mark.parametrize("taken", [0, 1])
def test_the_next_logical_batch_does_not_begin_before_the_last_one_ended(taken: int) -> None:
    batches = loader_of([3, 3], 2).logical_batches()
    items = iter(next(batches))
    for _ in range(taken):
        next(items)
    with pytest.raises(ProtocolError, match="not iterated over to its end"):
        next(iter(next(batches)))


def test_batches_that_end_before_the_declared_number_are_told() -> None:
    *whole, last = loader_of([2, 2], 2, steps=3).logical_batches()
    assert [len(records(item)) for batch in whole for item in batch] == [2, 2]
    with pytest.raises(ProtocolError, match="ended before"):
        list(last)
