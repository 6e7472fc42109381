"""Sums of tables as sparse tensors: those of dense gradients, in the rows that were touched."""

from __future__ import annotations

import pytest
import torch

from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.contribution import Plan
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.rows import Rows
from hushgrad.gradients.touched_rows import TouchedRows, rows_of, sum_of_looked_up

B, T, V, D = 5, 4, 9, 3


def looked_up(dtype: torch.dtype = torch.float64) -> Rows:
    rows = Rows(torch.randint(0, V, (B, T)), torch.randn(B, T, D, dtype=dtype), V)
    rows.gradients[0, 0] = 0
    return rows


def test_norms_and_sums_are_those_of_the_gradients() -> None:
    rows = looked_up()
    norms, measured = TouchedRows.of(rows).measure(Plan())
    wanted = rows.per_example()
    torch.testing.assert_close(norms, wanted.square().sum((1, 2)))
    weights = torch.rand(B, dtype=torch.float64)
    found = measured.weighted_sum(weights)
    assert found.is_sparse
    assert found.is_coalesced()
    torch.testing.assert_close(found.to_dense(), torch.tensordot(weights, wanted, 1))
    torch.testing.assert_close(measured.per_example(), wanted)
    assert rows_of(found)[0].tolist() == (wanted != 0).any(2).any(0).nonzero().flatten().tolist()


@pytest.mark.parametrize("value", [1.0, 1e30, torch.inf, torch.nan])
def test_a_huge_or_broken_example_is_clipped_as_ever_and_reaches_no_other(value: float) -> None:
    """Sums of two physical batches, the table beside a dense parameter: norms run over both."""
    rows, bias = looked_up(torch.float32), torch.randn(B, 2)
    rows.gradients[1] *= value
    found: dict[str, torch.Tensor] = {}
    expected: dict[str, torch.Tensor] = {}
    for _ in range(2):
        sparse = {"t": [TouchedRows.of(rows)], "b": [Dense(bias)]}
        clipped_sums(sparse, clip=FlatClipping(0.5), into=found)  # type: ignore[arg-type]
        dense = {"t": [Dense(rows.per_example())], "b": [Dense(bias)]}
        clipped_sums(dense, clip=FlatClipping(0.5), into=expected)  # type: ignore[arg-type]
    assert found["t"].is_sparse
    torch.testing.assert_close(found["t"].to_dense(), expected["t"])
    torch.testing.assert_close(found["b"], expected["b"])


def test_lookups_of_one_table_are_added_up() -> None:
    one, two = looked_up(), looked_up()
    wanted = one.per_example().sum(0) + two.per_example().sum(0)
    torch.testing.assert_close(sum_of_looked_up([one, two]).to_dense(), wanted)
