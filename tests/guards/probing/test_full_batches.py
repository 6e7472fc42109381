"""A collate function that mixes in large batches, or rows that are far apart, is refused; rows of constants are not."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.collate_probe import require_separate_rows
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.companions import FEWEST, MOST_HELD
from hushgrad.guards.probing.full_batches import MOST_OWN, own_records, require_same_in_full_batches, unlike
from hushgrad.guards.probing.widths import Drawn

NUMBERS = torch.Generator().manual_seed(3)
COUNT = 24
FEATURES = [torch.randn(4, generator=NUMBERS) for _ in range(COUNT)]
LABELLED = [(x, int(n == COUNT // 2)) for n, x in enumerate(FEATURES)]
WORDS = [f"w{n % 9} w{n * 7 % 9} w{n * 4 % 9}" for n in range(COUNT)]
SEQUENCES = [torch.randint(1, 9, (2 + n % 5,), generator=NUMBERS) for n in range(COUNT)]


def stacked(records: Any) -> Tensor:
    return torch.stack(list(records))


def standardised_from_eight_on(records: Any) -> Tensor:
    x = stacked(records)
    return (x - x.mean(0)) / x.std(0) if len(x) >= 8 else x


def without_far_values(records: Any) -> Tensor:
    x = stacked(records)
    return torch.where((x - x.mean(0)).abs() > 3 * x.std(0, correction=0), x.mean(0), x)


def without_rare_words(records: Any) -> Tensor:
    words = np.array([text.split() for text in records])
    known, counts = np.unique(words, return_counts=True)
    number = {word: place + 1 if count >= 10 else 0 for place, (word, count) in enumerate(zip(known, counts))}  # noqa: B905
    return torch.tensor([[min(1, number[word]) * int(word[1]) for word in row] for row in words])


def balanced(records: Any) -> tuple[Tensor, Tensor]:
    y = torch.tensor([y for _, y in records])
    return stacked([x for x, _ in records]), len(y) / (2 * torch.bincount(y, minlength=2)[y])


def mixed_with_a_far_row(records: Any) -> Tensor:
    return stacked([0.7 * x + 0.3 * records[n - 8] if n >= 8 else x for n, x in enumerate(records)])


def with_the_group_s_number(records: Any) -> Tensor:
    return torch.cat([stacked(records), (torch.arange(len(records)) // 8)[:, None]], 1)


def centred_by_groups(records: Any) -> Tensor:
    x = stacked(records)
    whole = x[: len(x) // 8 * 8].unflatten(0, (-1, 8))  # type: ignore[no-untyped-call]
    return torch.cat([(whole - whole.mean(1, keepdim=True)).flatten(0, 1), x[len(whole) * 8 :]])


LEAKY: list[tuple[Callable[[Any], Any], list[Any]]] = [
    (standardised_from_eight_on, FEATURES),
    (without_far_values, FEATURES),
    (without_rare_words, WORDS),
    (balanced, LABELLED),
    (mixed_with_a_far_row, FEATURES),
    (with_the_group_s_number, FEATURES),
    (centred_by_groups, FEATURES),
]


@pytest.mark.parametrize(("collate", "records"), LEAKY, ids=[case[0].__name__ for case in LEAKY])
def test_what_mixes_in_batches_of_many_alone_is_refused(collate: Callable[[Any], Any], records: list[Any]) -> None:
    require_separate_rows(CollateRuns(collate), records[:6])  # six do not show it
    with pytest.raises(CrossSampleLeakError, match=f"collate_fn {collate.__name__}: mixes examples"):
        require_same_in_full_batches(CollateRuns(collate), records, len(records))


def end_to_end(records: Any) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(record) for record in records])
    return torch.cat(list(records)), lengths.cumsum(0) - lengths


HARMLESS: list[tuple[Callable[[Any], Any], list[Any]]] = [
    (stacked, FEATURES),
    (lambda records: stacked(records).clamp(-1, 1), FEATURES),
    (lambda records: stacked([F.pad(x, (0, 8 - len(x))) for x in records]), SEQUENCES),
    (lambda records: pad_sequence(list(records), batch_first=True), SEQUENCES),
    (lambda records: pad_sequence(list(records)), SEQUENCES),
    (lambda records: pad_sequence(sorted(records, key=len)), SEQUENCES),
    (list, SEQUENCES),
    (end_to_end, SEQUENCES),
    (lambda records: {"x": stacked([x for x, _ in records]), "y": [y for _, y in records]}, LABELLED),
]


@pytest.mark.parametrize("case", range(len(HARMLESS)))
def test_padding_sorting_joining_and_constants_are_not_refused(case: int) -> None:
    collate, records = HARMLESS[case]
    runs = CollateRuns(collate)
    form = require_separate_rows(runs, records[:6])
    assert form is not None
    assert require_same_in_full_batches(runs, records, len(records), form.roles, reorders=form.reorders)


def test_a_function_that_fails_on_many_copies_of_a_record_is_told() -> None:
    def distinct(records: Any) -> Tensor:
        assert len({tuple(record.tolist()) for record in records}) == len(records)
        return stacked(records)

    assert not require_same_in_full_batches(CollateRuns(distinct), FEATURES, COUNT)


def test_the_two_records_whose_parts_differ_most_are_chosen_and_labels_count_as_parts() -> None:
    x = torch.zeros(4)
    assert unlike([(x, 0), (x, 0), (x, 1), (x, 0)])[1][1] == 1
    assert unlike([{"t": "ab"}, {"t": "ab"}, {"t": "cd"}]) == ({"t": "ab"}, {"t": "cd"})
    one, other = unlike([(x, 0, 1.0), (x + 1, 0, 1.0), (x + 1, 1, 1.0), (x, 1, 5.0)])
    assert (one[2], other[2]) == (1.0, 5.0)
    assert len({len(record) for record in unlike(SEQUENCES)}) == 2


def test_so_many_records_are_read_and_no_batch_holds_more_than_is_said() -> None:
    seen: SimpleQueue[int] = SimpleQueue()

    def counted(records: Any) -> Tensor:
        seen.put(len(records))
        return torch.stack([record.sum() for record in records])

    class Dataset:
        def __init__(self, values: int) -> None:
            self.values, self.read = values, 0

        def __getitem__(self, index: int) -> Tensor:
            self.read += 1
            return torch.zeros(self.values) if self.values < 5 else torch.zeros(()).expand(self.values)

    for values, most in ((4, MOST_OWN), (MOST_HELD // 20, 20), (1 << 21, 12)):
        dataset = Dataset(values)
        drawn = Drawn(dataset, list(range(1000)), torch.arange(1000.0)[:, None], 1000, counted)
        records = own_records(drawn, MOST_OWN)
        assert len(records) == dataset.read == most
    assert require_same_in_full_batches(CollateRuns(counted), [torch.ones(1 << 21), torch.zeros(1 << 21)], 1000)
    assert max(seen.get() for _ in range(seen.qsize())) == FEWEST
