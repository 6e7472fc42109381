"""Embedding bags: all modes, offsets, duplicates, weights for each id, padding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from measure import clipped, distance
from torch import Tensor, nn

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import CrossSampleLeakError, PrivacyUnitError, SparseGradientError, UnsupportedModelError
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

BAGS = [[1, 1, 4], [5], [2, 0, 2, 2], [], [3, 5, 1]]


class Bags(nn.Module):
    """A bag of embeddings and a head."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.bags, self.head = nn.EmbeddingBag(6, 4, **options), nn.Linear(4, 3)

    def forward(self, ids: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Return the head's output."""
        return self.head(self.bags(ids, offsets, weights).tanh())


def losses(out: Tensor) -> Tensor:
    return (out * torch.linspace(-1, 2, out.shape[1], dtype=out.dtype)).sin().sum(1)


def flat(bags: list[list[int]], last_offset: bool) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([0, *[len(bag) for bag in bags]]).cumsum(0)
    return torch.tensor([i for bag in bags for i in bag], dtype=torch.long), sizes if last_offset else sizes[:-1]


def sums(model: nn.Module, batch_size: int, *inputs: Any) -> dict[str, Tensor]:
    pool = UsePool()
    pool.batch_size = batch_size
    scope = Scope(model, pool)
    try:
        losses(model(*inputs)).sum().backward()
    finally:
        scope.detach()
    return clipped(pool.take(), 0.5)


def weights_of(bags: list[list[int]]) -> Tensor:
    return torch.tensor([0.3 * i - 0.7 for i in range(sum(map(len, bags)))], dtype=torch.float64)


OPTIONS: list[dict[str, Any]] = [
    {"mode": "sum"},
    {"mode": "mean"},
    {"mode": "max"},
    {"mode": "sum", "padding_idx": 2},
    {"mode": "mean", "padding_idx": -1},
    {"mode": "max", "padding_idx": 1},
    {"mode": "mean", "include_last_offset": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bags_told_apart_by_offsets_agree_with_one_bag_at_a_time(options: dict[str, Any]) -> None:
    model = Bags(**options).double()
    alone, last = copy.deepcopy(model), options.get("include_last_offset", False)
    runs = [lambda bag=bag: losses(alone(*flat([bag], last))).sum() for bag in BAGS]
    found = sums(model, len(BAGS), *flat(BAGS, last))
    assert distance(found, clipped_sum_of(one_at_a_time(alone, runs), FlatClipping(0.5))) <= 1e-12


@pytest.mark.parametrize("options", OPTIONS[:6], ids=str)
def test_bags_of_equal_length_agree_with_one_bag_at_a_time(options: dict[str, Any]) -> None:
    model, ids = Bags(**options).double(), torch.randint(0, 6, (7, 4))
    alone = copy.deepcopy(model)
    runs = [lambda i=i: losses(alone(ids[i : i + 1])).sum() for i in range(7)]
    assert distance(sums(model, 7, ids), clipped_sum_of(one_at_a_time(alone, runs), FlatClipping(0.5))) <= 1e-12


def test_weights_for_each_id_scale_its_row() -> None:
    model, weights = Bags(mode="sum").double(), weights_of(BAGS)
    alone = copy.deepcopy(model)
    ids, offsets = flat(BAGS, False)
    ends = [*offsets.tolist()[1:], len(ids)]
    runs = [
        lambda start=start, end=end: losses(alone(ids[start:end], torch.zeros(1).long(), weights[start:end])).sum()
        for start, end in zip(offsets.tolist(), ends, strict=True)
    ]
    expected = clipped_sum_of(one_at_a_time(alone, runs), FlatClipping(0.5))
    assert distance(sums(model, len(BAGS), ids, offsets, weights), expected) <= 1e-12
    table, scales = torch.randint(0, 6, (5, 3)), torch.randn(5, 3, dtype=torch.float64)
    runs = [lambda i=i: losses(alone(table[i : i + 1], None, scales[i : i + 1])).sum() for i in range(5)]
    assert (
        distance(sums(model, 5, table, None, scales), clipped_sum_of(one_at_a_time(alone, runs), FlatClipping(0.5)))
        <= 1e-12
    )


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_weight_that_is_not_finite_changes_no_other_example(value: float) -> None:
    model, weights = Bags(mode="sum").double(), weights_of(BAGS)
    (ids, offsets), first = flat(BAGS, False), len(BAGS[0])
    weights[0] = value
    found = sums(copy.deepcopy(model), len(BAGS), ids, offsets, weights)
    others = sums(model, len(BAGS) - 1, ids[first:], offsets[1:] - first, weights[first:])
    assert distance(found, others) <= 1e-12


@pytest.mark.parametrize("options", OPTIONS[:6], ids=str)
def test_the_output_is_that_of_torch(options: dict[str, Any]) -> None:
    model = Bags(**options).double()
    plain = model(*flat(BAGS, False))
    scope = Scope(model, UsePool())
    torch.testing.assert_close(model(*flat(BAGS, False)), plain)
    scope.detach()


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (UnsupportedModelError, {"max_norm": 1.0}),
        (CrossSampleLeakError, {"scale_grad_by_freq": True}),
        (SparseGradientError, {"sparse": True}),
    ],
)
def test_bags_whose_rows_show_other_examples_are_refused(error: type[Exception], options: dict[str, Any]) -> None:
    with pytest.raises(error):
        sums(Bags(mode="sum", **options).double(), 5, torch.randint(0, 6, (5, 3)))


def test_flat_ids_that_were_computed_from_the_batch_are_refused() -> None:
    class Sorted(Bags):
        def forward(self, ids: Tensor, offsets: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
            return super().forward(ids.sort().values, offsets)

    with pytest.raises(PrivacyUnitError):
        sums(Sorted(mode="sum").double(), len(BAGS), *flat(BAGS, False))
