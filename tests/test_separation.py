"""Losses of which one depends on another example's rows are told from separate ones, whichever rows and dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.loss_probe import require_separate_losses
from hushgrad.separation import CLASSES, Separation

SIZES = [2, 3, 8, CLASSES, CLASSES + 1, 100]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
Losses = Callable[[Tensor], Tensor]

SEPARATE: dict[str, Losses] = {
    "squares": lambda out: out.square().sum(1),
    "classes": lambda out: F.cross_entropy(out, torch.arange(len(out)) % out.shape[1], reduction="none"),
    "saturated classes": lambda out: F.cross_entropy(30 * out, torch.arange(len(out)) % out.shape[1], reduction="none"),
    "normalised": lambda out: (F.normalize(out, dim=1) - 0.3).square().mean(1),
    "a loop over the rows": lambda out: torch.stack([row.logsumexp(0) for row in out]),
    "a product of matrices": lambda out: (out @ torch.linspace(-1, 1, 15).reshape(5, 3).to(out.dtype)).tanh().sum(1),
    "tiny": lambda out: 1e-30 * out.float().square().sum(1),
    "huge": lambda out: 1e30 * out.float().square().sum(1),
}


def outputs(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, 5, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SEPARATE)
def test_separate_losses_are_not_refused_in_any_dtype_nor_if_they_are_huge_or_small(
    name: str, dtype: torch.dtype
) -> None:
    for size in SIZES:
        out = outputs(size, dtype)
        assert require_separate_losses(SEPARATE[name](out), [out])


@pytest.mark.parametrize("name", ["squares", "classes", "normalised", "a product of matrices"])
def test_separate_losses_take_no_more_than_the_first_backwards(name: str) -> None:
    """Weights that are powers of two change no rounding: nobody is suspected."""
    for size in SIZES:
        out = outputs(size)
        assert Separation(SEPARATE[name](out), [out]).suspects() == []


MIXED: dict[str, Losses] = {
    "all but the first and the last": lambda one: torch.cat([one[:1], one[1:-1] * one[1:-1].mean(), one[-1:]]),
    "those of the middle": lambda one: torch.cat([one[:2], one[2:-2].mean() * one[2:-2], one[-2:]]),
    "neighbours": lambda one: one - (one.roll(1) + one.roll(-1)) / 2,
    "centred": lambda one: one - one.mean(),
    "pairs": lambda one: one * one.view(-1, 2).flip(1).flatten(),
    "halves": lambda one: one + 1e-3 * one.roll(len(one) // 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MIXED)
def test_losses_that_mix_some_rows_only_are_refused(name: str, dtype: torch.dtype) -> None:
    for size in (8, CLASSES, 2 * CLASSES, 100):
        out = outputs(size, dtype)
        with pytest.raises(CrossSampleLeakError, match="its gradient with respect to them is not 0"):
            require_separate_losses(MIXED[name](out.float().square().sum(1)), [out])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_single_loss_that_depends_on_a_single_other_row_is_refused_whichever_they_are(dtype: torch.dtype) -> None:
    size = CLASSES + 8
    for place in range(size):
        for other in {0, 1, size // 2, (place + CLASSES) % size, size - 1} - {place}:
            out = outputs(size, dtype)
            losses = out.float().square().sum(1)
            losses = losses.index_add(0, torch.tensor([place]), losses[other : other + 1])
            with pytest.raises(CrossSampleLeakError):
                require_separate_losses(losses, [out])


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_hides_no_mixing_of_others(spoiled: float) -> None:
    scale = torch.ones(12)
    scale[3] = spoiled
    out = outputs(12)
    assert require_separate_losses(out.square().sum(1) * scale, [out])
    losses = out.square().sum(1)
    mixed = torch.cat([losses[:6], losses[6:-1] * losses[6:-1].mean(), losses[-1:]]) * scale
    with pytest.raises(CrossSampleLeakError):
        require_separate_losses(mixed, [out])


@pytest.mark.parametrize("size", SIZES)
def test_losses_in_another_order_than_the_rows_are_refused_for_that(size: int) -> None:
    out = outputs(size)
    losses = SEPARATE["squares"](out)
    with pytest.raises(CrossSampleLeakError, match="come in another order than the model's rows"):
        require_separate_losses(losses[torch.arange(size).roll(1)], [out])
    mixed = losses[torch.arange(size).roll(1)] * (1 + 0.5 * losses.sum())
    with pytest.raises(CrossSampleLeakError, match="depends on the outputs of others"):
        require_separate_losses(mixed, [out])
