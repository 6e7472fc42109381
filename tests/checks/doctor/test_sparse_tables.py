"""The doctor and tables whose rows are chosen privately."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hushgrad import SparseRows, doctor
from hushgrad.checks.doctor.sparse_tables import notes_of_tables

RULE = SparseRows(tables=("items.weight",), threshold=6.0, rows_per_record=4, count_share=0.25)


class Scores(nn.Module):
    """Looks rows up, and scores all of them."""

    def __init__(self, *, is_tied: bool) -> None:
        super().__init__()
        self.items, self.mix, self.is_tied = nn.Embedding(50, 3), nn.Linear(3, 3), is_tied

    def forward(self, ids: Tensor) -> Tensor:
        h = self.mix(self.items(ids))
        return F.linear(h, self.items.weight) if self.is_tied else h


def test_a_table_that_is_used_by_more_than_lookups_is_told() -> None:
    ids = torch.tensor([1, 2, 3])
    assert not doctor(Scores(is_tied=False), ids, sparse_rows=RULE).problems
    [problem] = doctor(Scores(is_tied=True), ids, sparse_rows=RULE).problems
    assert problem.where == "items.weight"
    assert problem.code == "DP306"
    assert "more than lookups" in problem.what
    assert not doctor(Scores(is_tied=True), ids).problems


def test_it_says_how_many_untouched_rows_pass() -> None:
    [note] = notes_of_tables(RULE, {"items.weight": torch.empty(1_000_000, 3)})
    expected = 1_000_000 * 0.5 * math.erfc(1.5 / math.sqrt(2))  # the threshold is 1.5 standard deviations of 4
    assert f"about {expected:.3g} rows that no record touched" in note.what
    assert note.where == "items.weight"
    assert not list(notes_of_tables(RULE, {}))
