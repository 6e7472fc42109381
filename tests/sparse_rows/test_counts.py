"""Counts of the rows that records touch: against counting one record at a time, and how far one record moves them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hushgrad import SparseRows
from hushgrad.gradients.rows import Rows
from hushgrad.gradients.touched_rows import TouchedRows
from hushgrad.sparse_rows.counts import Counts, RowSpace

SIZES = {"a": 11, "b": 7}
SPACE = RowSpace.of(SIZES)


def recorded(seed: int, batch: int, zeros: float = 0.3) -> dict[str, Rows]:
    """Lookups in both tables, of which some have no gradient, and rows that an example looked up twice."""
    source = torch.Generator().manual_seed(seed)
    found = {}
    for (name, size), times in zip(SIZES.items(), (5, 2), strict=True):
        ids = torch.randint(0, size, (batch, times), generator=source)
        gradients = torch.randn(batch, times, 3, generator=source)
        gradients[torch.rand(batch, times, generator=source) < zeros] = 0
        found[name] = Rows(ids, gradients, size)
    return found


def counted(rows: dict[str, Rows], rule: SparseRows) -> Tensor:
    """The counts of all rows, dense."""
    counts = Counts.of({name: TouchedRows.of(part) for name, part in rows.items()}, SPACE, rule)
    assert counts.numbers.tolist() == sorted(set(counts.numbers.tolist()))
    return torch.zeros(SPACE.total, dtype=torch.float64).index_add_(0, counts.numbers, counts.values)


def one_record_at_a_time(rows: dict[str, Rows], rule: SparseRows) -> Tensor:
    total = torch.zeros(SPACE.total, dtype=torch.float64)
    batch = next(iter(rows.values())).batch_size
    for place in range(batch):
        per_row = torch.cat([part.per_example()[place] for part in rows.values()])
        touched = (per_row != 0).any(1).double()
        total += touched * min(1.0, rule.count_limit / max(1e-9, float(touched.norm())))
    return total


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6))
def test_counts_are_those_of_one_record_at_a_time_clipped_by_their_norm(seed: int, batch: int, m: int) -> None:
    rule = SparseRows(tables=("a", "b"), threshold=1.0, rows_per_record=m)
    rows = recorded(seed, batch)
    torch.testing.assert_close(counted(rows, rule), one_record_at_a_time(rows, rule))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 6))
def test_one_record_moves_the_counts_by_at_most_their_limit(seed: int, batch: int, m: int) -> None:
    rule = SparseRows(tables=("a", "b"), threshold=1.0, rows_per_record=m)
    rows = recorded(seed, batch, zeros=0.0)
    fewer = {name: Rows(part.ids[1:], part.gradients[1:], part.num_rows) for name, part in rows.items()}
    moved = float((counted(rows, rule) - counted(fewer, rule)).norm())
    assert moved <= math.sqrt(m) * (1 + 1e-12)
    alone = {name: Rows(part.ids[:1], part.gradients[:1], part.num_rows) for name, part in rows.items()}
    touched = int((counted(alone, rule) > 0).sum())
    assert moved == pytest.approx(math.sqrt(min(m, touched)))


def test_a_row_whose_gradient_cancels_or_is_not_there_is_not_touched() -> None:
    rule = SparseRows(tables=("a", "b"), threshold=1.0)
    gradients = torch.tensor([[[1.0], [-1.0], [0.0]], [[torch.nan], [0.0], [0.0]]])
    rows = {"a": Rows(torch.tensor([[3, 3, 5], [4, 0, 0]]), gradients, 11)}
    assert counted(rows, rule).nonzero().flatten().tolist() == [4]


def test_counts_of_physical_batches_add_up_to_those_of_the_logical_one() -> None:
    rule = SparseRows(tables=("a", "b"), threshold=1.0, rows_per_record=2)
    one, two = recorded(1, 3), recorded(2, 4)
    parts = [Counts.of({n: TouchedRows.of(p) for n, p in rows.items()}, SPACE, rule) for rows in (one, two)]
    both = Counts.none().plus(parts[0]).plus(parts[1])
    dense = torch.zeros(SPACE.total, dtype=torch.float64).index_add_(0, both.numbers, both.values)
    torch.testing.assert_close(dense, counted(one, rule) + counted(two, rule))


def test_the_rows_of_a_table_are_found_among_those_of_all() -> None:
    numbers = torch.tensor([0, 10, 11, 14, 17])
    assert SPACE.part(numbers, "a").tolist() == [0, 10]
    assert SPACE.part(numbers, "b").tolist() == [0, 3, 6]
    assert SPACE.part(numbers[:0], "b").tolist() == []
