"""What the model is given for one example follows no padding: a loop that pools before the model is run again, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.loss_padding import INPUTS

WIDTH, CONSTANT = 12, 20
G = torch.Generator().manual_seed(3)
RECORDS = [torch.randn(length, 4, generator=G) for length in (3, WIDTH, 4, 3, 5, 3, 6, 4)]
"""Eight records; one is longer than all others."""

Given = Callable[[Any], Tensor]
"""What the model is given, of vectors `[B, T, 4]` or of a list of them."""


def padded(records: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(records), batch_first=True)


def left_padded(records: Sequence[Tensor]) -> Tensor:
    return padded([record.flip(0) for record in records]).flip(1)


def mask_of(x: Tensor) -> Tensor:
    return (x != 0).any(2)


def own_mean(x: Tensor) -> Tensor:
    return x.sum(1) / mask_of(x).sum(1, keepdim=True)


def filled(records: Sequence[Tensor], out: Tensor) -> Tensor:
    for row, record in enumerate(records):
        out[row, : len(record)] = record
    return out


def longest(records: Sequence[Tensor]) -> int:
    return max(len(record) for record in records)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(x)


def train(given: Given, collate: Callable[[list[Tensor]], Any] = padded, *, passes_mask: bool = False) -> set[str]:
    """Train a step on all records; return the sentences of what was taken on trust."""
    torch.manual_seed(0)
    model, data = Model(), list(RECORDS)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(test_key=1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=len(data), collate_fn=collate),  # type: ignore[arg-type]
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for x in loader:
        out = model(given(x), mask_of(x)) if passes_mask else model(given(x))
        engine.session.backward(F.cross_entropy(out, torch.zeros(len(x), dtype=torch.long), reduction="none"))
        optimizer.step()
    conditions = engine.guarantee(1e-5).conditions
    return {str(condition) for condition in conditions if condition.name not in ("fixed key", "no ledger path")}


EMBEDDING = nn.Embedding(5, 4).requires_grad_(False)
PLACES = torch.rand(30, 4)
CONV = nn.Conv1d(4, 4, 3, padding=1).requires_grad_(False)

FOLLOWING: dict[str, Given] = {
    "mean": lambda x: x.mean(1),
    "sum over the width": lambda x: x.sum(1) / x.shape[1],
    "times one over the width": lambda x: (x * (1 / x.size(1))).sum(1),
    "maximum": lambda x: x.amax(1),
    "last position": lambda x: x[:, -1],
    "the first three from the end": lambda x: x.flip(1)[:, :3].mean(1),
    "a frequency": lambda x: torch.fft.rfft(x, dim=1)[:, 1].abs(),
    "the first half": lambda x: x.chunk(2, 1)[0].mean(1),
    "half of the width": lambda x: x[:, : x.shape[1] // 2].mean(1),
    "pooled to one": lambda x: F.adaptive_avg_pool1d(x.transpose(1, 2), 1)[..., 0],
    "places by linspace": lambda x: (x * torch.linspace(0, 1, x.shape[1])[:, None]).sum(1),
    "places by a range over the width": lambda x: (x * (torch.arange(x.shape[1]) / x.shape[1])[:, None]).sum(1),
    "weights of one over the width": lambda x: torch.einsum("btd,t->bd", x, torch.full((x.shape[1],), 1 / x.shape[1])),
    "a masked sum over the width": lambda x: (x * (torch.arange(x.shape[1]) < mask_of(x).sum(1, True))[..., None]).mean(
        1
    ),
    "less the mean over the width": lambda x: ((x - x.mean(1, keepdim=True)) * mask_of(x)[..., None]).sum(1),
    "frozen embedding, mean": lambda x: EMBEDDING((x[..., 0] > 0).long()).mean(1),
    "frozen convolution, mean": lambda x: CONV(x.transpose(1, 2)).relu().mean(2),
    "noise, then a mean": lambda x: (x + torch.randn_like(x)).mean(1),
    "padded by as much again": lambda x: F.pad(x, (0, 0, 0, x.shape[1])).mean(1),
    "padded to a constant that the code does not hold": lambda x: F.pad(x, (0, 0, 0, CONSTANT - x.shape[1])).mean(1),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_loop_that_pools_over_padding_before_the_model_is_refused_by_line(name: str) -> None:
    with pytest.raises(CrossSampleLeakError, match=r"\(test_given_padding\.py, line \d+\): (what the model|the loss)"):
        train(FOLLOWING[name])


def test_what_keeps_its_positions_is_held_to_the_record_s_own() -> None:
    with pytest.raises(CrossSampleLeakError, match="what the model is given for one example"):
        train(lambda x: x - x.mean(1, keepdim=True), passes_mask=True)
    assert train(lambda x: x - own_mean(x)[:, None], passes_mask=True) == set()
    assert train(lambda x: x.cumsum(1), passes_mask=True) == set()


HONEST: dict[str, Given] = {
    "own mean": own_mean,
    "own mean by a range": lambda x: (
        (x * (torch.arange(x.shape[1]) < mask_of(x).sum(1, True))[..., None]).sum(1) / mask_of(x).sum(1, True)
    ),
    "own maximum": lambda x: x.masked_fill(x == 0, -1e9).amax(1),
    "own last": lambda x: x[torch.arange(len(x)), mask_of(x).sum(1) - 1],
    "first position": lambda x: x[:, 0],
    "sum": lambda x: x.sum(1),
    "cut to three": lambda x: x[:, :3].mean(1),
    "noise on the record's own positions": lambda x: own_mean(x + torch.randn_like(x) * mask_of(x)[..., None]),
    "dropout": lambda x: x.sum(1) / 4 + F.dropout(own_mean(x), 0.2),
    "padded to 20": lambda x: F.pad(x, (0, 0, 0, 20 - x.shape[1])).mean(1),
    "by a literal that is as large as the width": lambda x: x.sum(1) / 12,
    "reshaped": lambda x: own_mean(x.reshape(-1, 4).view(len(x), x.shape[1], 4)),
    "softmax over own places": lambda x: torch.einsum(
        "btd,bt->bd",
        x,
        torch.arange(x.shape[1]).float().expand(len(x), -1).masked_fill(~mask_of(x), -1e9).softmax(1),
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_what_is_made_of_a_record_s_own_positions_trains_without_a_condition(name: str) -> None:
    assert train(HONEST[name]) == set()


def test_embeddings_of_places_are_cut_to_the_other_width() -> None:
    """That they are constants of the loop a later item would tell."""
    [said] = train(lambda x: own_mean((x + PLACES[: x.shape[1]]) * mask_of(x)[..., None]))
    assert "values read by the loop" in said


def test_padding_on_the_left_is_told_from_what_follows_it() -> None:
    assert train(lambda x: x[:, -1], left_padded) == set()
    assert train(own_mean, left_padded) == set()
    for given in (lambda x: x.mean(1), lambda x: x[:, 0]):
        with pytest.raises(CrossSampleLeakError, match="what the model is given"):
            train(given, left_padded)


LISTS: dict[str, Given] = {
    "mean": lambda x: padded(x).mean(1),
    "maximum": lambda x: padded(x).amax(1),
    "sum over the longest": lambda x: padded(x).sum(1) / longest(x),
    "each padded": lambda x: torch.stack([F.pad(r, (0, 0, 0, longest(x) - len(r))).mean(0) for r in x]),
    "filled in": lambda x: filled(x, torch.zeros(len(x), longest(x), 4)).mean(1),
    "filled in, of the records' kind": lambda x: filled(x, x[0].new_zeros(len(x), longest(x), 4)).mean(1),
}

HONEST_LISTS: dict[str, Given] = {
    "own mean": lambda x: own_mean(padded(x)),
    "each by itself": lambda x: torch.stack([record.mean(0) for record in x]),
    "padded on the left": lambda x: left_padded(x)[:, -1],
    "each padded": lambda x: own_mean(torch.stack([F.pad(r, (0, 0, 0, longest(x) - len(r))) for r in x])),
    "each padded to 20": lambda x: torch.stack([F.pad(r, (0, 0, 0, 20 - len(r))).mean(0) for r in x]),
    "filled in": lambda x: own_mean(filled(x, torch.zeros(len(x), longest(x), 4))),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_loop_that_pads_a_list_and_pools_over_it_is_refused(name: str) -> None:
    with pytest.raises(CrossSampleLeakError, match=r"\(test_given_padding\.py, line \d+\): (what the model|the loss)"):
        train(LISTS[name], list)


@pytest.mark.parametrize("name", HONEST_LISTS)
def test_a_loop_that_pads_a_list_trains_if_what_it_makes_is_the_record_s_own(name: str) -> None:
    assert train(HONEST_LISTS[name], list) == set()


def test_calls_that_run_on_no_other_width_are_said() -> None:
    def by_blocks(x: Tensor) -> Tensor:
        return own_mean(x.unflatten(1, (3, 4)).flatten(1, 2))

    [said] = train(by_blocks)
    assert INPUTS in said
