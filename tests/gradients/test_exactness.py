"""Clipped sums from capture against one example at a time, for every kind of operator."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, losses
from measure import captured, clipped, distance, norm_of, reference
from torch import Tensor

from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.oracle import clipped_sum_of

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
ALL = 11


def half_clipped(per_example: dict[str, Tensor]) -> float:
    """The clip norm at which half of the examples are clipped."""
    return float(norm_of(per_example).median())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_clipped_sums_agree_with_one_example_at_a_time(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    model = case.model().to(dtype)
    everything = case.batch(ALL, dtype)
    for size in (1, 5, 8, ALL):
        batch = everything[:size]
        per_example = reference(model, batch, losses)
        max_grad_norm = half_clipped(per_example)
        wanted = clipped_sum_of(per_example, FlatClipping(max_grad_norm))
        found = clipped(captured(model, batch, losses), max_grad_norm)
        assert distance(found, wanted) <= TOLERANCE[dtype], f"batch of {size}"


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", CASES)
def test_one_example_changes_the_sum_by_at_most_the_clip_norm(name: str) -> None:
    """Guarantee: adding or removing one example changes the clipped sum by at most `sensitivity`."""
    """Guarantee: adding or removing one example changes the clipped sum by at most `sensitivity`."""
    case = CASES[name]
    model, batch = case.model(), case.batch(5, torch.float32)
    max_grad_norm = half_clipped(reference(model, batch, losses))
    whole = clipped(captured(model, batch, losses), max_grad_norm)
    for i in range(5):
        rest = torch.cat([batch[:i], batch[i + 1 :]])
        without = clipped(captured(model, rest, losses), max_grad_norm)
        assert distance(whole, without, relative=False) <= max_grad_norm * (1 + 1e-5)


HUGE = [name for name, case in CASES.items() if not case.vocabulary]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("scale", [0.0, 1e6, 1e20, torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("name", HUGE)
def test_an_extreme_example_changes_the_sum_by_at_most_the_clip_norm(name: str, scale: float) -> None:
    case = CASES[name]
    model, batch = case.model(), case.batch(5, torch.float32)
    max_grad_norm = half_clipped(reference(model, batch, losses))
    batch[2] = batch[2] * scale
    # A sine of huge values has a gradient without a direction; the identity keeps extreme inputs extreme.
    whole = clipped(captured(model, batch, lambda out: out.flatten(1).sum(1)), max_grad_norm)
    rest = torch.cat([batch[:2], batch[3:]])
    without = clipped(captured(model, rest, lambda out: out.flatten(1).sum(1)), max_grad_norm)
    assert all(torch.isfinite(value).all() for value in whole.values())
    assert distance(whole, without, relative=False) <= max_grad_norm * (1 + 1e-5)


@pytest.mark.parametrize("name", ["mlp", "conv2d", "lstm", "gru cell", "embedding", "class token", "prelu"])
def test_a_clip_norm_above_all_norms_gives_the_ordinary_gradient(name: str) -> None:
    case = CASES[name]
    model, batch = case.model().double(), case.batch(6, torch.float64)
    ordinary = copy.deepcopy(model)
    losses(ordinary(batch)).sum().backward()
    found = clipped(captured(model, batch, losses), 1e9)
    assert distance(found, {key: p.grad for key, p in ordinary.named_parameters() if p.grad is not None}) <= 1e-12
