"""Models that see padding, in sessions with a loader: refused; their masked look-alikes train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine, Session
from hushgrad.errors import CrossSampleLeakError

COUNT = 6
RECORDS = [torch.arange(1, length + 1) for length in (3, 3, 4, 3, 12, 5)]


class Pooled(nn.Module):
    def __init__(self, pool: Callable[[Tensor, Tensor], Tensor], dropout: float = 0.0) -> None:
        super().__init__()
        self.table, self.head, self.pool = nn.Embedding(13, 12, padding_idx=0), nn.Linear(12, 2), pool
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.pool(self.dropout(self.table(ids)), ids))


def over_all(h: Tensor, ids: Tensor) -> Tensor:
    return h.mean(1)


def over_own(h: Tensor, ids: Tensor) -> Tensor:
    is_own = (ids != 0).unsqueeze(2)
    return (h * is_own).sum(1) / is_own.sum(1)


def right(records: list[Tensor]) -> Tensor:
    return pad_sequence(records, batch_first=True)


def left(records: list[Tensor]) -> Tensor:
    return right([record.flip(0) for record in records]).flip(1)


def full(records: list[Tensor]) -> Tensor:
    return torch.stack([nn.functional.pad(record, (0, 20 - len(record))) for record in records])


def step(model: nn.Module, collate: Callable[[list[Tensor]], Any], call: Callable[[Any, Any], Tensor]) -> Session:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(test_key=1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(RECORDS, batch_size=COUNT, collate_fn=collate),  # type: ignore[arg-type]
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for item in loader:
        engine.session.backward(call(model, item).square().sum(1))
        optimizer.step()
    return engine.session


WAYS: dict[str, tuple[Callable[[list[Tensor]], Any], Callable[[Any, Any], Tensor]]] = {
    "on the right": (right, lambda model, ids: model(ids)),
    "on the left": (left, lambda model, ids: model(ids)),
    "by the loop": (list, lambda model, records: model(right(records))),
    "cut by the loop": (full, lambda model, ids: model(ids[:, : int((ids != 0).sum(1).max())])),
}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("way", WAYS)
def test_an_output_that_depends_on_how_far_an_example_is_padded_is_refused(way: str, dropout: float) -> None:
    with pytest.raises(CrossSampleLeakError, match=r"padded to a longer one|the loop lets examples"):
        step(Pooled(over_all, dropout), *WAYS[way])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_leaves_padding_out_trains(way: str, dropout: float) -> None:
    """Features as wide as the longest record is long are no positions."""
    assert step(Pooled(over_own, dropout), *WAYS[way]).steps == 1


LONGEST = max(map(len, RECORDS))


@pytest.mark.parametrize("length", {*range(2, LONGEST + 2)} - {LONGEST - 1})
def test_a_loop_may_cut_records_to_a_constant(length: int) -> None:
    assert step(Pooled(over_own), right, lambda model, ids: model(ids[:, :length])).steps == 1


def test_a_cut_by_one_position_is_told_from_a_shift_by_the_loops_code_or_an_item_that_is_longer() -> None:
    """A shift takes a token from the longest record alone: its mean is another one beside a longer record."""
    assert step(Pooled(over_own), right, lambda model, ids: model(ids[:, :11])).steps == 1
    for shift in (lambda ids: ids[:, :-1], lambda ids: ids[:, : ids.shape[1] - 1]):
        with pytest.raises(CrossSampleLeakError, match=r"padded to a longer one|the loop lets examples"):
            step(Pooled(over_own), right, lambda model, ids, shift=shift: model(shift(ids)))


@pytest.mark.parametrize("length", [LONGEST - 2, LONGEST - 1])
def test_a_model_that_sees_the_padding_that_a_cut_left_is_refused(length: int) -> None:
    with pytest.raises(CrossSampleLeakError, match=r"padded to a longer one|the loop lets examples"):
        step(Pooled(over_all), right, lambda model, ids: model(ids[:, :length]))


def test_a_cut_record_that_ended_in_equal_positions_was_not_padded_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([1, 2, 3, 4, 5, 5, 5])
    monkeypatch.setitem(globals(), "RECORDS", [*(torch.arange(1, length + 1) for length in (3, 3, 4, 3, 5)), ends])
    assert step(Pooled(over_own), right, lambda model, ids: model(ids[:, :5])).steps == 1


class Tokens(nn.Module):
    """A value for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(14, 4), nn.Linear(4, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids)).squeeze(2)


@pytest.mark.parametrize("collate", [right, left])
def test_a_record_that_is_one_shorter_than_the_longest_is_padded_on_the_side_that_the_collate_pads(
    collate: Callable[[list[Tensor]], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single position is equal to itself: what stands at the other end of the record is not taken for padding."""
    monkeypatch.setitem(globals(), "RECORDS", [torch.arange(1, length + 1) for length in (13, 13, 12, 13, 12, 13)])

    def own_mean(model: nn.Module, ids: Tensor) -> Tensor:
        is_own = ids != 0
        return ((model(ids) * is_own).sum(1) / is_own.sum(1)).unsqueeze(1)

    assert step(Tokens(), collate, own_mean).steps == 1
