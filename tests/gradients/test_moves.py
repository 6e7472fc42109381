"""How far the clipped sum moves when one record leaves: what it added, and how the others are rounded without it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import CASES
from measure import captured, clipped, distance
from torch import Tensor, nn

from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.contribution import Plan
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.outer import OuterProducts

LIMIT = 1.0


class Autocast(nn.Module):
    """A model in bf16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Run it under autocast."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.model(x)  # type: ignore[no-any-return]


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": lambda model: model,
    "bf16 autocast": Autocast,
    "bf16 parameters": lambda model: copy.deepcopy(model).bfloat16(),
    "fp16 parameters": lambda model: copy.deepcopy(model).half(),
}


def weighed(weights_B: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda out: F.softplus(20 * out.float().flatten(1)).sum(1) * weights_B


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mlp", "conv1d", "class token", "linear, one middle dimension"])
@pytest.mark.parametrize("size", [2, 9, 17, 33])
def test_in_batches_of_one_shape_a_record_moves_the_sum_by_the_clip_norm_in_every_dtype(
    form: str, name: str, size: int
) -> None:
    """With `constant_shapes` another record of weight 0 takes the place of the one that leaves."""
    case = CASES[name]
    model = FORMS[form](case.model())
    x = case.batch(size, torch.float32).to(next(model.parameters()).dtype)
    ones, without = torch.ones(size), torch.ones(size).index_fill(0, torch.tensor([1]), 0)
    whole = clipped(captured(model, x, weighed(ones)), LIMIT)
    other = x.clone()
    other[1] = 3 * x[0]
    moved = distance(whole, clipped(captured(model, other, weighed(without)), LIMIT), relative=False)
    assert moved <= LIMIT * (1 + 1e-5)
    if form == "float32":
        kept = torch.arange(size) != 1
        left = clipped(captured(model, x[kept], weighed(ones[kept])), LIMIT)
        assert distance(whole, left, relative=False) <= LIMIT * (1 + 1e-5)


@pytest.mark.parametrize("batch", [16, 256])
@pytest.mark.parametrize("way", ["gram", "instantiate"])
def test_a_huge_or_cancelling_record_changes_how_others_are_rounded_by_less_than_1e_5(batch: int, way: str) -> None:
    sign = torch.ones(32, 1)
    sign[16:] = -1
    for share in (1.0, 0.1, 0.01, 1e-4):
        left, right = torch.randn(batch, 32, 16), torch.randn(batch, 32, 16)
        left[0] = (torch.rand(1, 16) + 0.5) + share * torch.randn(1, 16) * sign
        right[0] = (torch.rand(1, 16) + 0.5) * sign / share**2
        sums = [
            clipped_sums(
                {"w": [OuterProducts(left[first:], right[first:])]},
                clip=FlatClipping(LIMIT),
                plan=Plan(way, keep_bytes=0),  # type: ignore[arg-type]
            )
            for first in (0, 1)
        ]
        assert distance(*sums, relative=False) <= LIMIT * (1 + 1e-5)


def test_rounding_of_a_sum_grows_with_the_records_of_a_physical_batch() -> None:
    """Equal records are rounded in one direction: the figure of docs/verify.md."""
    for batch, allowed in ((256, 1e-5), (4096, 1e-3), (65_536, 1e-2)):
        gradients = torch.full((batch, 100), 0.7)
        sums = [clipped_sums({"w": [Dense(part)]}, clip=FlatClipping(LIMIT)) for part in (gradients, gradients[1:])]
        assert abs(distance(*sums, relative=False) - LIMIT) <= allowed
