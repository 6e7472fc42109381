"""Losses follow no padding: not by a mean over positions, and not by a length that Python was told."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.loop_numbers import LoopNumbers
from hushgrad.guards.probing.loss_padding import NUMBERS, OUTPUTS, LossPadding
from hushgrad.guards.probing.loss_trace import LossTrace
from hushgrad.guards.probing.positions import Positions
from hushgrad.guards.probing.widths import Drawn

V, IGNORED = 11, -100
RECORDS = [[5, 2, 3, 4, 5, 6, 7], [1, 9, 4], [2, 2, 8, 1], [3, 3, 3, 1, 2]]
"""Four records; the longest has seven positions."""

Losses = Callable[[Tensor, Tensor], Tensor]
"""Of logits `[B, T, V]` and labels `[B, T]`."""


def collate(records: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, records))
    ids = torch.tensor([[*record, *[0] * (width - len(record))] for record in records])
    return ids, torch.tensor([[*record, *[IGNORED] * (width - len(record))] for record in records])


MODEL = nn.Module()


def require_same(
    losses: Losses,
    *items: Sequence[Sequence[int]],
    shape: tuple[int, ...] | None = None,
    is_known: bool = True,
    extents: Sequence[int] | None = None,
) -> LossPadding:
    """Look at the programs of items, of losses made of logits `[B, T, V]`, or of outputs `[B, *shape]`."""
    positions = Positions()
    numbers = LoopNumbers()
    padding = LossPadding(positions, numbers)
    for records in items:
        item = collate(records)
        size, width = item[0].shape
        full = (size, width, V) if shape is None else (size, *shape)
        if is_known:
            alone = (1, 1, V) if shape is None else (1, *shape)
            positions.learn(MODEL, torch.zeros(full), torch.zeros(alone), {(): 0})
        trace = LossTrace(size, item, {})
        try:
            trace.given(((item[0],), {}), ())
            output = torch.randn(full, generator=torch.Generator().manual_seed(1)).requires_grad_() * 1
            trace.returned(output, (), MODEL)
            trace.loss(losses(output, item[1]), is_rows=True)
        finally:
            trace.end()
        numbers.note(trace.program)
        own = [len(record) for record in records] if extents is None else extents
        padding.require_same(trace.program, Drawn(records, range(size), item, size, collate, extents=own))
    return padding


def per_token(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")


def own_mean(logits: Tensor, labels: Tensor) -> Tensor:
    return per_token(logits, labels).sum(1) / (labels != IGNORED).sum(1)


FOLLOWING: dict[str, Losses] = {
    "mean over positions": lambda o, y: per_token(o, y).mean(1),
    "the shape": lambda o, y: per_token(o, y).sum(1) / y.shape[1],
    "the output's shape": lambda o, y: per_token(o, y).sum(1) / o.size(1),
    "the length of a row": lambda o, y: per_token(o, y).sum(1) / len(y[0]),
    "the number of values": lambda o, y: per_token(o, y).sum(1) / y.numel() * len(y),
    "a quotient": lambda o, y: per_token(o, y).sum(1) / (y.numel() / len(y)),
    "its root": lambda o, y: per_token(o, y).sum(1) / math.sqrt(y.shape[1]),
    "one less": lambda o, y: per_token(o[:, :-1], y[:, 1:]).sum(1) / (y.shape[1] - 1),
    "a tensor of it": lambda o, y: per_token(o, y).sum(1) / torch.tensor(float(y.shape[1])),
    "beside a range of it": lambda o, y: (
        (per_token(o, y) * (torch.arange(y.shape[1]) < (y >= 0).sum(1, keepdim=True))).sum(1) / y.shape[1]
    ),
    "maximum over positions": lambda o, y: (-per_token(o, y) - 0.1 * (y != IGNORED)).amax(1),
    "masked by a range, mean over positions": lambda o, y: (
        per_token(o, y) * (torch.arange(y.shape[1]) < (y >= 0).sum(1, keepdim=True))
    ).mean(1),
    "as a factor": lambda o, y: own_mean(o, y) * y.shape[1],
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_loss_that_follows_the_longest_record_of_its_batch_is_refused_by_line(name: str) -> None:
    with pytest.raises(
        CrossSampleLeakError, match=r"\(test_loss_padding\.py, line \d+\): the loss of one example is"
    ) as e:
        require_same(FOLLOWING[name], RECORDS)
    assert "mask.sum(1)" in e.value.cure


LIMIT, TEMPERATURE = 7, 7.0

HONEST: dict[str, Losses] = {
    "own mean": own_mean,
    "own maximum": lambda o, y: per_token(o, y).amax(1),
    "own mean with noise": lambda o, y: own_mean(o + 0.1 * torch.randn_like(o), y),
    "masked by a range, own mean": lambda o, y: (
        (per_token(o, y) * (torch.arange(y.shape[1]) < (y >= 0).sum(1, keepdim=True))).sum(1) / (y >= 0).sum(1)
    ),
    "own sum": lambda o, y: per_token(o, y).sum(1),
    "own mean of shifted ones": lambda o, y: own_mean(o[:, :-1].contiguous(), y[:, 1:].contiguous()),
    "a literal that is as large": lambda o, y: per_token(o, y).sum(1) / 7,
    "a constant of another size": lambda o, y: per_token(o, y).sum(1) / (LIMIT + 2),
    "the number of classes": lambda o, y: own_mean(o, y) / math.log(o.shape[-1]),
    "reshaped": lambda o, y: (
        F.cross_entropy(o.reshape(-1, V), y.reshape(-1), reduction="none").view(len(y), y.shape[1]).sum(1)
        / (y != IGNORED).sum(1)
    ),
    "a length that no gradient follows": lambda o, y: own_mean(o, y) + 0 * y[:, 0] / y.shape[1],
}


@pytest.mark.parametrize("name", HONEST)
def test_losses_of_a_records_own_positions_are_told_to_be_so(name: str) -> None:
    assert require_same(HONEST[name], RECORDS).untold == ()


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("classes", [len(RECORDS[0]), len(RECORDS[0]) - 1])
def test_as_many_classes_as_the_longest_record_has_positions_are_no_positions(classes: int, is_known: bool) -> None:
    found = require_same(
        lambda o, y: F.cross_entropy(o, y[:, 0] % classes, reduction="none"),
        RECORDS,
        shape=(classes,),
        is_known=is_known,
    )
    assert found.untold == (() if is_known else (OUTPUTS,))


def test_outputs_over_positions_are_padded_further_also_where_the_model_did_not_run_alone() -> None:
    with pytest.raises(CrossSampleLeakError):
        require_same(FOLLOWING["mean over positions"], RECORDS, is_known=False)


# A constant that cuts records ----------------------------------------------------------------------------------------

CUT = [RECORDS[0], RECORDS[0][::-1], RECORDS[1], RECORDS[2]]
SHORTER = [RECORDS[2], RECORDS[1], RECORDS[3], RECORDS[1]]


def by_constant(logits: Tensor, labels: Tensor) -> Tensor:
    assert labels.shape[1] <= LIMIT
    return per_token(logits, labels).sum(1) / LIMIT


def test_a_constant_to_which_records_are_cut_is_told_from_their_length_by_an_item_of_another() -> None:
    assert require_same(by_constant, CUT).untold == (NUMBERS,)
    assert require_same(by_constant, CUT, CUT).untold == (NUMBERS,)
    assert require_same(by_constant, CUT, SHORTER).untold == ()
    assert require_same(by_constant, CUT, SHORTER, CUT, RECORDS).untold == ()


def test_a_length_that_several_records_have_is_told_from_a_constant_by_an_item_of_another() -> None:
    assert require_same(FOLLOWING["the shape"], CUT).untold == (NUMBERS,)
    for second in (SHORTER, RECORDS, [RECORDS[2], RECORDS[2][::-1], RECORDS[1], RECORDS[1]]):
        with pytest.raises(CrossSampleLeakError):
            require_same(FOLLOWING["the shape"], CUT, second)


# In training ---------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """Gives as many classes as the longest record has positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(V, 8), nn.Linear(8, len(RECORDS[0]))

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != 0).float()[..., None]
        return self.head((self.embedding(ids) * mask).sum(1) / mask.sum(1))


class Tagger(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Embedding(V, 8), nn.Linear(8, V))


def condition_names(model: nn.Module, losses: Losses) -> set[str]:
    """Train a step on all of the records; return what was taken on trust."""
    torch.manual_seed(0)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(test_key=1)
    data: Any = RECORDS
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=len(RECORDS), collate_fn=collate),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    for ids, labels in loader:
        engine.session.backward(losses(model(ids), labels))
        optimizer.step()
    return {condition.name for condition in engine.guarantee(1e-5).conditions} - {"fixed key", "no ledger path"}


def test_a_step_is_released_if_its_losses_follow_no_padding_and_refused_before_if_they_do() -> None:
    assert condition_names(Classifier(), lambda o, y: F.cross_entropy(o, y[:, 0] % 7, reduction="none")) == set()
    assert condition_names(Tagger(), own_mean) == set()
    model = Tagger()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(CrossSampleLeakError, match="the loss of one example is divided by"):
        condition_names(model, FOLLOWING["the shape"])
    assert all(map(torch.equal, before, model.parameters()))
