"""A collate function that mixes records is refused; one that pads, augments or masks is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import default_collate

from hushgrad import PrivacyEngine
from hushgrad.errors import BatchStructureError, CrossSampleLeakError
from hushgrad.guards.probing.collate_probe import require_separate_rows
from hushgrad.guards.probing.collate_runs import CollateRuns

Record = tuple[Tensor, int]


def records(count: int = 6) -> list[Record]:
    key = torch.Generator().manual_seed(3)
    return [(torch.randn(3, generator=key), index % 2) for index in range(count)]


def sequences(count: int = 6) -> list[Record]:
    """Of small whole numbers: in one draw of a hundred their means are equal by chance where they should not be."""
    key = torch.Generator().manual_seed(3)
    return [(torch.randint(1, 9, (2 + index,), generator=key), index % 2) for index in range(count)]


def mixup(batch: list[Record]) -> tuple[Tensor, Tensor]:
    x, y = default_collate(batch)
    share = np.random.beta(0.4, 0.4)
    return share * x + (1 - share) * x[torch.randperm(len(x))], y


def mixed_with_the_next(batch: list[Record]) -> tuple[Tensor, Tensor]:
    x, y = default_collate(batch)
    return torch.cat([x[:, :2], x.roll(1, 0)[:, 2:]], 1), y


def centred(batch: list[Record]) -> tuple[Tensor, Tensor]:
    x, y = default_collate(batch)
    return x - x.mean(0), y


def with_a_statistic(batch: list[Record]) -> dict[str, Tensor]:
    x, y = default_collate(batch)
    return {"x": x, "y": y, "scale": x.std()}


def balanced(batch: list[Record]) -> dict[str, Tensor]:
    x, y = default_collate(batch)
    return {"x": x, "y": y, "weight": 1 / torch.bincount(y, minlength=2).float()[y]}


def sorted_by_length(batch: list[Record]) -> tuple[Tensor, Tensor]:
    batch = sorted(batch, key=lambda record: -len(record[0]))
    return padded(batch)


def sorted_and_padded_by_the_mean(batch: list[Record]) -> tuple[Tensor, Tensor]:
    return padded_by_the_mean(sorted(batch, key=lambda record: -len(record[0])))


def sorted_beside_other_targets(batch: list[Record]) -> tuple[Tensor, Tensor]:
    return sorted_by_length(batch)[0], padded(batch)[1]


def sorted_with_ranks(batch: list[Record]) -> tuple[Tensor, Tensor, Tensor]:
    return *sorted_by_length(batch), torch.arange(len(batch))


def in_lists_without_the_longest(batch: list[Record]) -> list[Tensor]:
    longest = max(len(x) for x, _ in batch)
    return [x[:-1] if len(x) == longest else x for x, _ in batch]


def end_to_end(batch: list[Record]) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.tensor([len(x) for x, _ in batch])
    return torch.cat([x for x, _ in batch]), lengths.cumsum(0) - lengths, torch.tensor([y for _, y in batch])


def end_to_end_and_shifted(batch: list[Record]) -> tuple[Tensor, Tensor, Tensor]:
    ids, starts, y = end_to_end(batch)
    return ids.roll(1), starts, y


def divided_by_the_longest(batch: list[Record]) -> dict[str, Tensor]:
    ids, _ = padded(batch)
    return {"ids": ids, "share": torch.tensor([len(x) / ids.shape[1] for x, _ in batch])}


def packed_and_centred(batch: list[Record]) -> Any:
    mean = torch.cat([x for x, _ in batch]).float().mean()
    return pack_sequence([x.float() - mean for x, _ in batch], enforce_sorted=False)


def padded_by_the_mean(batch: list[Record]) -> tuple[Tensor, Tensor]:
    mean = float(torch.cat([x for x, _ in batch]).float().mean())
    return pad_sequence([x.float() for x, _ in batch], True, mean), torch.tensor([y for _, y in batch])


def padded_by_others(batch: list[Record]) -> tuple[Tensor, Tensor]:
    """Fills up with what the next record begins with."""
    width = max(len(x) for x, _ in batch)
    rows = [torch.cat([x, batch[i - 1][0].repeat(width)])[:width] for i, (x, _) in enumerate(batch)]
    return torch.stack(rows), torch.tensor([y for _, y in batch])


def padded(batch: list[Record]) -> tuple[Tensor, Tensor]:
    return pad_sequence([x for x, _ in batch], batch_first=True), torch.tensor([y for _, y in batch])


def masked(batch: list[Record]) -> dict[str, Tensor]:
    """Masked language modelling: which tokens are masked is drawn for the padded batch."""
    ids, y = padded(batch)
    hidden = torch.bernoulli(torch.full(ids.shape, 0.15)).bool()
    return {"ids": ids.masked_fill(hidden, 10), "labels": ids.masked_fill(~hidden, -100), "mask": ids != 0, "y": y}


def noisy(batch: list[Record]) -> tuple[Tensor, Tensor]:
    x, y = default_collate(batch)
    return x + 0.1 * torch.randn_like(x), y


def with_lengths(batch: list[Record]) -> dict[str, Any]:
    ids, y = padded(batch)
    return {"ids": ids, "y": y, "lengths": torch.tensor([len(x) for x, _ in batch]), "longest": ids.shape[1]}


LEAKY: list[tuple[Callable[[list[Record]], Any], list[Record]]] = [
    (mixup, records()),
    (mixed_with_the_next, records()),
    (centred, records()),
    (with_a_statistic, records()),
    (balanced, records()),
    (sorted_and_padded_by_the_mean, sequences()),
    (sorted_beside_other_targets, sequences()),
    (sorted_with_ranks, sequences()),
    (in_lists_without_the_longest, sequences()),
    (end_to_end_and_shifted, sequences()),
    (divided_by_the_longest, sequences()),
    (packed_and_centred, sequences()),
    (padded_by_the_mean, sequences()),
    (padded_by_others, sequences()),
]

HARMLESS: list[tuple[Callable[[list[Record]], Any], list[Record]]] = [
    (default_collate, records()),
    (padded, sequences()),
    (masked, sequences()),
    (noisy, records()),
    (with_lengths, sequences()),
    (padded, sequences(2)),
    (sorted_by_length, sequences()),
    (sorted_by_length, sequences(2)),
    (list, sequences()),
    (lambda batch: tuple(zip(*batch, strict=True)), sequences()),
    (end_to_end, sequences()),
    (end_to_end, [(x, 0) for x, _ in sequences()]),  # labels that look like beginnings
    (lambda batch: pack_sequence([x for x, _ in batch], enforce_sorted=False), sequences()),
]


@pytest.mark.parametrize(("collate", "batch"), LEAKY, ids=[case[0].__name__ for case in LEAKY])
def test_a_collate_function_that_mixes_records_is_refused(
    collate: Callable[[list[Record]], Any], batch: list[Record]
) -> None:
    with pytest.raises(CrossSampleLeakError, match=f"collate_fn {collate.__name__}: mixes examples.*Make each row"):
        require_separate_rows(CollateRuns(collate), batch)


@pytest.mark.parametrize(("collate", "batch"), HARMLESS, ids=[case[0].__name__ for case in HARMLESS])
def test_a_collate_function_that_pads_or_augments_is_not_refused(
    collate: Callable[[list[Record]], Any], batch: list[Record]
) -> None:
    require_separate_rows(CollateRuns(collate), batch)


def test_the_records_are_left_alone() -> None:
    batch = records()
    before = [x.clone() for x, _ in batch]

    def writes(found: list[Record]) -> Any:
        for x, _ in found:
            x.zero_()
        return default_collate(found)

    require_separate_rows(CollateRuns(writes), batch)
    assert all(torch.equal(x, kept) for (x, _), kept in zip(batch, before, strict=True))


class Records(Dataset[Record]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Record:
        return records(12)[index]


@pytest.mark.parametrize("collate", [mixup, centred])
def test_a_loader_with_a_mixing_collate_function_hands_out_nothing(collate: Callable[[list[Record]], Any]) -> None:
    model = nn.Linear(3, 2)
    engine = PrivacyEngine(test_key=1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        data_loader=DataLoader(Records(), batch_size=4, collate_fn=collate),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for _ in range(2):  # asking again changes nothing
        with pytest.raises(CrossSampleLeakError, match=collate.__name__):
            next(iter(loader))
    assert engine.session.steps == 0


@pytest.mark.parametrize("kind", ["a tensor", "an array"])
@pytest.mark.parametrize("physical", [None, 4])
def test_a_collate_function_with_a_buffer_of_its_own_is_no_leak_and_gives_the_records_that_were_drawn(
    kind: str, physical: int | None
) -> None:
    data, buffer = torch.randn(8, 3), torch.zeros(8, 3)
    array = buffer.numpy()

    def collate(rows: list[Tensor]) -> Tensor:
        torch.stack(rows, out=buffer[: len(rows)])
        return buffer[: len(rows)] if kind == "a tensor" else torch.from_numpy(array[: len(rows)])

    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, _, items = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(list(data), batch_size=8, collate_fn=collate),  # type: ignore[arg-type]
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        max_physical_batch_size=physical,
    )
    seen = []
    for x in items:
        seen.append(x.clone())
        model(x).square().sum(1).mean().backward()
        optimizer.step()
    assert torch.equal(torch.cat(seen), data)


def test_a_collate_function_that_drops_records_is_told_what_it_does() -> None:
    def without_the_last(batch: list[Record]) -> Any:
        return default_collate(batch[:-1])

    with pytest.raises(CrossSampleLeakError, match="makes no row for each"):
        require_separate_rows(CollateRuns(without_the_last), records())


def test_a_collate_function_that_fails_on_some_records_alone_is_refused_by_a_typed_error() -> None:
    def of_many(batch: list[Record]) -> Any:
        return default_collate(batch[: 4 * (len(batch) // 4)])

    with pytest.raises(BatchStructureError, match="fails on some of its records alone"):
        require_separate_rows(CollateRuns(of_many), records())


@pytest.mark.parametrize("labels", [(0, 0), (0, 2), (2, 1)])
@pytest.mark.parametrize("lengths", [(1, 2), (1, 8), (5, 1)])
def test_two_records_end_to_end_are_told_apart_where_one_of_them_has_a_single_row(
    lengths: tuple[int, int], labels: tuple[int, int]
) -> None:
    two = [(torch.arange(1, length + 1), label) for length, label in zip(lengths, labels, strict=True)]
    require_separate_rows(CollateRuns(end_to_end), two)
    with pytest.raises(CrossSampleLeakError, match="mixes examples"):
        require_separate_rows(CollateRuns(end_to_end_and_shifted), two)
