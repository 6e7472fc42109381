"""A collate function that draws by Python or NumPy may augment each record, and may not mix any."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.collate_drawn_rows import UNTOLD
from hushgrad.guards.probing.collate_probe import require_separate_rows
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.companions import require_same_beside_any
from hushgrad.guards.probing.full_batches import require_same_in_full_batches

NUMBERS = torch.Generator().manual_seed(5)
EVEN = [torch.randn(4, generator=NUMBERS) for _ in range(12)]
LONG = [torch.randint(1, 9, (3 + 2 * n % 11,), generator=NUMBERS) for n in range(12)]

own, own_numpy = random.Random(3), np.random.default_rng(3)


def padded(records: Any) -> Tensor:
    return pad_sequence(list(records), batch_first=True)


def flipped(records: list[Tensor]) -> Tensor:
    return torch.stack([record.flip(0) if random.random() < 0.5 else record for record in records])


def flipped_by_its_own(records: list[Tensor]) -> Tensor:
    return torch.stack([record.flip(0) if own.random() < 0.5 else record for record in records])


def noisy(records: list[Tensor]) -> Tensor:
    x = torch.stack(list(records))
    return x + torch.from_numpy(np.random.normal(size=tuple(x.shape)))


def noisy_by_its_own(records: list[Tensor]) -> Tensor:
    x = torch.stack(list(records))
    return x + torch.from_numpy(own_numpy.normal(size=tuple(x.shape)))


def scaled_until_it_fits(records: list[Tensor]) -> Tensor:
    rows = []
    for record in records:
        while (share := random.random()) > 0.3:
            pass
        rows.append(record * share)
    return torch.stack(rows)


def in_a_list(records: list[Tensor]) -> list[Tensor]:
    return [record * random.random() for record in records]


def cropped(records: list[Tensor]) -> Tensor:
    starts = ((record, random.randrange(max(1, len(record) - 4))) for record in records)
    return padded([record[start : start + 5] for record, start in starts])


def masked(records: list[Tensor]) -> tuple[Tensor, Tensor]:
    ids = padded(records).numpy().copy()
    hidden = (np.random.rand(*ids.shape) < 0.3) & (ids > 0)
    return torch.from_numpy(np.where(hidden, 9, ids)), torch.from_numpy(np.where(hidden, ids, -100))


def noisy_to_the_end(records: list[Tensor]) -> tuple[Tensor, Tensor]:
    x = padded(records)
    return x + torch.from_numpy(np.random.normal(size=tuple(x.shape))), torch.tensor([len(r) for r in records])


def masked_and_replaced(records: list[Tensor]) -> Tensor:
    ids, labels = masked(records)
    replaced = torch.from_numpy(np.random.rand(*ids.shape) < 0.5) & (labels > 0)
    return ids.masked_fill(replaced, 7)


def sorted_in_place(records: list[Tensor]) -> Tensor:
    records.sort(key=len)
    return padded([record.flip(0) if random.random() < 0.5 else record for record in records])


HARMLESS: list[tuple[Callable[[Any], Any], list[Tensor]]] = [
    (flipped, EVEN),
    (flipped_by_its_own, EVEN),
    (noisy, EVEN),
    (noisy_by_its_own, EVEN),
    (scaled_until_it_fits, EVEN),
    (in_a_list, EVEN),
    (cropped, LONG),
    (masked, LONG),
    (noisy_to_the_end, LONG),
    (sorted_in_place, LONG),
]


def mixed_up(records: list[Tensor]) -> Tensor:
    x, share = torch.stack(list(records)), np.random.beta(0.4, 0.4)
    return share * x + (1 - share) * x[np.random.permutation(len(x))]


def mixed_up_in_some_batches(records: list[Tensor]) -> Tensor:
    return mixed_up(records) if random.random() < 0.5 else torch.stack(list(records))


def cut_and_mixed(records: list[Tensor]) -> Tensor:
    others = list(records)
    random.shuffle(others)
    return torch.stack([torch.cat([one[:2], other[2:]]) for one, other in zip(records, others, strict=True)])


def pasted(records: list[Tensor]) -> Tensor:
    return torch.stack([record + 0.5 * random.choice(records) for record in records])


def centred_and_noisy(records: list[Tensor]) -> Tensor:
    x = noisy(records)
    return x - torch.stack(list(records)).mean(0)


def cropped_to_the_shortest(records: list[Tensor]) -> Tensor:
    length = min(map(len, records))
    starts = ((record, random.randrange(len(record) - length + 1)) for record in records)
    return torch.stack([record[start : start + length] for record, start in starts])


LEAKY: list[tuple[Callable[[Any], Any], list[Tensor]]] = [
    (mixed_up, EVEN),
    (mixed_up_in_some_batches, EVEN),
    (cut_and_mixed, EVEN),
    (pasted, EVEN),
    (centred_and_noisy, EVEN),
    (cropped_to_the_shortest, LONG),
]


def examined(collate: Callable[[Any], Any], records: list[Tensor], turn: int) -> CollateRuns:
    runs = CollateRuns(collate, turn=turn)
    form = require_separate_rows(runs, records[:6])
    assert form is not None
    assert require_same_beside_any(runs, records, 12, form.roles)
    assert require_same_in_full_batches(runs, records, 12, form.roles, reorders=form.reorders)
    return runs


@pytest.mark.parametrize(("collate", "records"), HARMLESS, ids=[case[0].__name__ for case in HARMLESS])
def test_numbers_of_python_and_numpy_that_augment_each_record_are_not_refused(
    collate: Callable[[Any], Any], records: list[Tensor]
) -> None:
    state, numpy_state = random.getstate(), np.random.get_state()
    for turn in range(2):
        runs = examined(collate, records, turn)
        assert runs.has_drawn
        assert not runs.untold
    assert random.getstate() == state
    assert np.array_equal(numpy_state[1], np.random.get_state()[1])


@pytest.mark.parametrize(("collate", "records"), LEAKY, ids=[case[0].__name__ for case in LEAKY])
def test_what_mixes_records_at_random_is_refused(collate: Callable[[Any], Any], records: list[Tensor]) -> None:
    with pytest.raises(CrossSampleLeakError, match=f"collate_fn {collate.__name__}: mixes examples"):
        examined(collate, records, 0)


def test_what_draws_several_times_for_a_whole_batch_is_compared_in_one_shape_and_the_rest_is_said() -> None:
    assert list(examined(masked_and_replaced, LONG, 0).untold) == [UNTOLD]

    def mixed_beside_two_draws(records: list[Tensor]) -> Tensor:
        ids = masked_and_replaced(records)
        return ids + ids.roll(1, 0)

    with pytest.raises(CrossSampleLeakError):
        examined(mixed_beside_two_draws, LONG, 0)
