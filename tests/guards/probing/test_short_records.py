"""Padding that only some records have is seen, however many longest ones there are and whatever comes beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError

LONG, SHORT = [5, 2, 3, 4, 5, 6, 7, 8], [1, 9, 4]


def collate(records: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    ids = pad_sequence([torch.tensor(record) for record in records], batch_first=True)
    return ids, (ids != 0).long(), torch.tensor([record[0] % 2 for record in records])


class Reader(nn.Module):
    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding, self.head, self.read = nn.Embedding(12, 8), nn.Linear(8, 2), read

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.read(self.embedding(ids), mask))


def own_mean(h: Tensor, mask: Tensor) -> Tensor:
    return (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def noise_by_width(h: Tensor, mask: Tensor) -> Tensor:
    """NEFTune: its amplitude follows the width of the batch, and the layer behind it hides a constant."""
    amplitude = 5.0 / (h.shape[1] * h.shape[2]) ** 0.5
    return own_mean(F.layer_norm(h + torch.zeros_like(h).uniform_(-amplitude, amplitude), (8,)), mask)


def noise_by_constant(h: Tensor, mask: Tensor) -> Tensor:
    return own_mean(F.layer_norm(h + torch.zeros_like(h).uniform_(-0.1, 0.1), (8,)), mask)


def step(read: Callable[[Tensor, Tensor], Tensor], records: list[list[int]]) -> None:
    torch.manual_seed(0)
    model = Reader(read)
    engine = PrivacyEngine(test_key=1)
    loader: Any = DataLoader(records, batch_size=len(records), collate_fn=collate)  # type: ignore[arg-type]
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for ids, mask, labels in loader:
        criterion(model(ids, mask), labels).backward()
        optimizer.step()
    names = {condition.name for condition in engine.guarantee(1e-5).conditions}
    assert names <= {"fixed key", "no ledger path"}


@pytest.mark.parametrize("longest", [1, 3, 6])
@pytest.mark.parametrize("read", [lambda h, mask: h.mean(1), lambda h, mask: h[:, -1]], ids=["mean", "last"])
def test_a_model_that_sees_padding_is_refused_however_many_records_are_longest(
    read: Callable[[Tensor, Tensor], Tensor], longest: int
) -> None:
    with pytest.raises(CrossSampleLeakError, match="padded to a longer one"):
        step(read, [LONG] * longest + [SHORT] * 20)


def test_noise_whose_scale_follows_the_width_is_refused_behind_a_normalisation_too() -> None:
    with pytest.raises(CrossSampleLeakError, match="a number that random values are drawn with"):
        step(noise_by_width, [LONG] + [SHORT] * 20)


@pytest.mark.parametrize("read", [own_mean, noise_by_constant], ids=["mean of its own", "noise of one scale"])
@pytest.mark.parametrize("longest", [1, 6])
def test_a_model_that_leaves_padding_out_trains(read: Callable[[Tensor, Tensor], Tensor], longest: int) -> None:
    step(read, [LONG] * longest + [SHORT] * 20)
