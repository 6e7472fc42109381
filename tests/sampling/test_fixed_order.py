"""Batches in the same order in every pass."""

from __future__ import annotations

from collections import deque
from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hushgrad.accounting import DisjointPass, FixedOrder, FixedOrderBuffered
from hushgrad.errors import DuplicateRecordError, InvalidArgumentError, UnsupportedSamplerError
from hushgrad.randomness import KeyStream
from hushgrad.sampling import DisjointBatches, FixedOrderBatches, PrivateLoader
from hushgrad.strategies.banded import INDEPENDENT, BandedStrategy
from hushgrad.strategies.buffered import BufferedStrategy

DATA = TensorDataset(torch.arange(12.0))


def loader(batches: object, steps: int = 3) -> PrivateLoader:
    return PrivateLoader(
        DATA,
        FixedOrderBatches(steps),
        steps_per_pass=steps,
        stream=KeyStream.fixed_for_tests(1),
        batch_size=4,
        batches=batches,  # type: ignore[arg-type]
    )


def test_the_same_batches_come_in_every_pass() -> None:
    found = loader([(0, 1), (2, 3), (4,)])
    first = [item[0].tolist() for item in found]
    assert [item[0].tolist() for item in found] == first == [[0.0, 1.0], [2.0, 3.0], [4.0]]


def test_a_shuffled_loader_is_refused_in_the_pass_that_moves_a_record_forward() -> None:
    shuffled = DataLoader(DATA, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(4))
    found = PrivateLoader.from_data_loader(shuffled, FixedOrderBatches(3), stream=KeyStream.fixed_for_tests(1))
    with pytest.raises(DuplicateRecordError, match="less than 3 steps"):
        deque(chain.from_iterable(found for _ in range(4)), 0)


@pytest.mark.parametrize("batches", [[(0,), (1,)], [(0,), (1,), (2,), (3,)]])
def test_a_pass_of_another_length_is_refused(batches: list[tuple[int, ...]]) -> None:
    with pytest.raises(UnsupportedSamplerError, match="must have 3 batches"):
        list(loader(batches))


def test_after_a_pass_that_was_broken_off_the_order_begins_anew() -> None:
    found = loader([(0, 1), (2, 3), (4,)])
    next(iter(found))
    assert len(list(found)) == 3
    assert len(list(found)) == 3


def test_a_record_twice_in_a_pass_is_refused() -> None:
    with pytest.raises(DuplicateRecordError):
        list(loader([(0, 1), (1,), (2,)]))


def test_events_are_of_the_strategy() -> None:
    scheme, buffered = FixedOrderBatches(9), BufferedStrategy((0.9, 0.5), (0.1, 0.2))
    assert scheme.event(2.0, 1) == scheme.correlated_event(2.0, INDEPENDENT, 1) == FixedOrder(2.0, 9, 1)
    assert scheme.correlated_event(2.0, buffered, 1) == FixedOrderBuffered.of(2.0, 9, buffered, 1)
    assert scheme.correlated_event(2.0, BandedStrategy((1.0,) * 9)) == FixedOrder(2.0, 9, 0)
    assert scheme.correlated_event(2.0, BandedStrategy((1.0,) * 10)) is None
    assert DisjointBatches().correlated_event(2.0, INDEPENDENT, 4) == DisjointPass(2.0, 4)
    assert DisjointBatches().correlated_event(2.0, BandedStrategy((1.0, 0.5))) is None


@pytest.mark.parametrize("steps", [0, 1.5, "3"])
def test_a_pass_has_a_whole_number_of_batches(steps: object) -> None:
    with pytest.raises(InvalidArgumentError):
        FixedOrderBatches(steps)  # type: ignore[arg-type]
