"""All that is asked of a collate function is asked, and what could not be told is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hushgrad.errors import BatchStructureError, CrossSampleLeakError
from hushgrad.guards.probing import companions, full_batches
from hushgrad.guards.probing.collate_examination import require_separate_records
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.widths import Drawn

COUNT = 16


def drawn(records: list[Tensor], collate: Any) -> Drawn:
    return Drawn(records, list(range(COUNT)), collate(records), COUNT, collate, extents=[len(r) for r in records])


def even() -> list[Tensor]:
    return [torch.full((4,), float(n)) for n in range(COUNT)]


def of_other_lengths() -> list[Tensor]:
    return [torch.full((4 + n % 3,), float(n)) for n in range(COUNT)]


def centred(records: list[Tensor]) -> Tensor:
    x = torch.stack(list(records))
    return x - x.mean(0)


def cut_to_the_shortest(records: list[Tensor]) -> Tensor:
    return torch.stack([record[: min(map(len, records))] for record in records])


def scaled_from_ten_on(records: list[Tensor]) -> Tensor:
    x = torch.stack(list(records))
    return x / x.max() if len(x) >= 10 else x


def filling(records: list[Tensor]) -> Tensor:
    x = torch.stack(list(records))
    for record in records:
        record.fill_(float(x.max()))
    return x


@pytest.mark.parametrize(
    ("collate", "records"),
    [
        (centred, even),
        (cut_to_the_shortest, of_other_lengths),
        (scaled_from_ten_on, even),
        (filling, lambda: [torch.full((4,), float(n % 8)) for n in range(COUNT)]),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_each_of_the_questions_refuses_what_the_others_do_not_see(collate: Any, records: Any, is_first: bool) -> None:
    item = drawn(records(), lambda found: pad_sequence(list(found), True))
    with pytest.raises(CrossSampleLeakError, match=f"collate_fn {collate.__name__}"):
        require_separate_records(CollateRuns(collate), item, is_first=is_first)


def test_what_could_not_be_told_is_said_and_a_clean_function_leaves_nothing() -> None:
    def padded(records: list[Tensor]) -> Tensor:
        return pad_sequence(list(records), batch_first=True)

    def of_distinct(records: list[Tensor]) -> Tensor:
        assert len({float(record[0]) for record in records}) == len(records)
        return padded(records)

    runs = CollateRuns(padded)
    assert require_separate_records(runs, drawn(of_other_lengths(), padded), is_first=True) is not None
    assert not runs.untold
    runs = CollateRuns(of_distinct)
    with pytest.raises(BatchStructureError, match="fails on some of its records alone"):  # exchanged ones are copies
        require_separate_records(runs, drawn(of_other_lengths(), padded), is_first=True)

    def of_few_copies(records: list[Tensor]) -> Tensor:
        found = [float(record[0]) for record in records]
        assert max(map(found.count, found)) < 4
        return padded(records)

    runs = CollateRuns(of_few_copies)
    require_separate_records(runs, drawn(of_other_lengths(), padded), is_first=True)
    assert list(runs.untold) == [companions.UNTOLD, full_batches.UNTOLD]
