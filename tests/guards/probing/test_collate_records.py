"""A collate function may not write what follows other records into the dataset's own ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.collate_records import require_unwritten
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.widths import Drawn


def rows() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def centring(records: list[Tensor]) -> Tensor:
    mean = torch.stack(list(records)).mean(0)
    for record in records:
        record.sub_(mean)
    return torch.stack(list(records))


def centring_arrays(records: list[Any]) -> Tensor:
    mean = np.mean(list(records), 0)
    for record in records:
        record -= mean
    return torch.tensor(np.stack(list(records)))


def centring_pairs(records: list[tuple[Tensor]]) -> Tensor:
    return centring([x for x, in records])  # fmt: skip


def padding_labels(records: list[dict[str, Any]]) -> Tensor:
    longest = max(len(record["labels"]) for record in records)
    for record in records:
        record["labels"] = record["labels"] + [-100] * (longest - len(record["labels"]))
    return torch.tensor([record["labels"] for record in records])


def noting_itself(records: list[dict[str, Any]]) -> Tensor:
    for record in records:
        record["count"] = len(record["labels"])
    return torch.tensor([record["count"] for record in records])


def halving(records: list[Tensor]) -> Tensor:
    return torch.stack([record.mul_(0.5) for record in records])


def words() -> list[dict[str, Any]]:
    return [{"labels": list(range(2 + n))} for n in range(8)]


class Fresh:
    """Makes its records anew each time."""

    def __init__(self, records: Any) -> None:
        self.records = records

    def __getitem__(self, index: int) -> Any:
        found = self.records[index]
        return dict(found) if isinstance(found, dict) else found.clone()


def examine(collate: Callable[[Any], Any], dataset: Any) -> None:
    records = [dataset[n] for n in range(6)]
    drawn = Drawn(dataset, list(range(6)), torch.zeros(6, 1), 6, collate)
    require_unwritten(CollateRuns(collate), drawn, records)


CASES: list[tuple[Callable[[Any], Any], Callable[[], Any], str]] = [
    (centring, lambda: list(rows()), "the whole"),
    (centring, rows, "the whole"),
    (centring_arrays, lambda: rows().numpy(), "the whole"),
    (centring_pairs, lambda: TensorDataset(rows()), "part 0"),
    (padding_labels, words, r"part labels\.\d+"),
]


@pytest.mark.parametrize(("collate", "dataset", "part"), CASES)
def test_writing_what_follows_others_into_records_that_the_dataset_keeps_is_refused(
    collate: Callable[[Any], Any], dataset: Callable[[], Any], part: str
) -> None:
    with pytest.raises(CrossSampleLeakError, match=rf"collate_fn {collate.__name__}: writes .* into {part}"):
        examine(collate, dataset())


def test_writing_into_fresh_records_or_what_follows_the_record_alone_is_not() -> None:
    examine(centring, Fresh(rows()))
    examine(padding_labels, Fresh(words()))
    examine(halving, list(rows()))
    examine(noting_itself, words())
    examine(torch.stack, list(rows()))


def test_a_loader_that_centres_its_dataset_in_place_hands_out_nothing() -> None:
    engine, model = PrivacyEngine(), nn.Linear(4, 3)

    def centred_for_later(records: list[Tensor]) -> Tensor:
        given = torch.stack(list(records))
        centring(records)
        return given

    _, _, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        data_loader=DataLoader(list(rows()), batch_size=8, collate_fn=centred_for_later),  # type: ignore[arg-type]
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    with pytest.raises(CrossSampleLeakError, match="which later batches read"):
        next(iter(loader))
