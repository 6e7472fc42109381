"""Sixteen bits: autocast and bf16 parameters, within the error of the oracle run in the same precision."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, losses
from measure import captured, clipped, distance, norm_of, reference
from torch import Tensor, nn

from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.oracle import clipped_sum_of

HALF = torch.bfloat16
# torch has no bilinear of mixed dtypes, autocast or not, and no Fourier transform in bf16.
NAMES = [name for name in CASES if name not in ("bilinear", "fourier")]


class Autocast(nn.Module):
    """A model whose forward runs under autocast."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Run the model in bf16 where autocast says so."""
        with torch.autocast("cpu", dtype=HALF):
            return self.model(x)


def widened(out: Tensor) -> Tensor:
    return losses(out.float())


def assert_as_good_as_the_oracle(exact: dict[str, Tensor], half: nn.Module, x: Tensor, limit: float) -> None:
    """The error against float32 is at most that of the oracle in bf16, up to chance in the last bit."""
    prefix = "model." if isinstance(half, Autocast) else ""
    exact = {prefix + name: value for name, value in exact.items()}
    oracle = {name: value.float() for name, value in reference(half, x, widened).items()}
    allowed = distance(clipped_sum_of(oracle, FlatClipping(limit)), exact)
    found = clipped(captured(half, x, widened), limit)
    assert all(value.dtype == torch.float32 for value in found.values())
    assert distance(found, exact) <= 1.5 * allowed + 2e-3


def skip_what_this_processor_lacks(half: nn.Module, x: Tensor) -> None:
    """Ask torch, without hushgrad: the oracle is an ordinary run, and oneDNN has no 16-bit LSTM for some processors."""
    try:
        widened(copy.deepcopy(half)(x)).sum().backward()
    except RuntimeError as refusal:
        if "primitive" not in str(refusal):
            raise
        pytest.skip(f"torch itself cannot run this model on this processor: {refusal}")


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("form", ["autocast", "parameters"])
@pytest.mark.parametrize("name", NAMES)
def test_sums_in_bf16_are_as_good_as_those_of_the_oracle_in_bf16(name: str, form: str) -> None:
    case = CASES[name]
    model, x = case.model(), case.batch(6, torch.float32)
    per_example = reference(model, x, losses)
    limit = float(norm_of(per_example).median())
    exact = clipped_sum_of(per_example, FlatClipping(limit))
    half = Autocast(model) if form == "autocast" else model.to(HALF)
    if form == "parameters" and not case.vocabulary:
        x = x.to(HALF)
    skip_what_this_processor_lacks(half, x)
    assert_as_good_as_the_oracle(exact, half, x, limit)


def test_a_backward_under_autocast_still_sums_in_float32() -> None:
    model, x = CASES["mlp"].model(), CASES["mlp"].batch(6, torch.float32)
    plain = clipped(captured(model, x, losses), 0.5)
    with torch.autocast("cpu", dtype=HALF):
        uses = captured(model, x, losses)
        norms = {name: clipped({name: parts}, 1e9)[name].dtype for name, parts in uses.items()}
    assert set(norms.values()) == {torch.float32}
    assert distance(clipped(uses, 0.5), plain) <= 0.05


DTYPES = ["float64", "float32", "bf16 parameters", "bf16 autocast"]
EXTREMES = [name for name in NAMES if not CASES[name].vocabulary]
SCALES = (1.0, 0.0, 1e6, 1e20, torch.inf, torch.nan)
LIMIT = 0.7


def in_dtype(name: str, dtype: str, size: int) -> tuple[nn.Module, Tensor]:
    case = CASES[name]
    model, x = case.model(), case.batch(size, torch.float32)
    if dtype == "bf16 autocast":
        return Autocast(model), x
    if dtype == "float32":
        return model, x
    to = torch.float64 if dtype == "float64" else HALF
    return model.to(to), x if case.vocabulary else x.to(to)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXTREMES)
def test_one_extreme_example_changes_the_sum_by_at_most_the_clip_norm_in_every_dtype(name: str, dtype: str) -> None:
    """Guarantee: adding or removing one example changes the clipped sum by at most `sensitivity`."""
    model, x = in_dtype(name, dtype, 4)
    rest = clipped(captured(model, x[[0, 1, 3]], _summed), LIMIT)
    original = x[2].clone()
    for scale in SCALES:
        x[2] = original * scale
        whole = clipped(captured(model, x, _summed), LIMIT)
        assert all(torch.isfinite(value).all() for value in whole.values())
        assert distance(whole, rest, relative=False) <= LIMIT * (1 + 1e-5), f"example times {scale}"


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_one_extreme_loss_changes_the_sum_by_at_most_the_clip_norm_in_every_dtype(name: str, dtype: str) -> None:
    """Guarantee: adding or removing one example changes the clipped sum by at most `sensitivity`."""
    model, x = in_dtype(name, dtype, 4)
    rest = clipped(captured(model, x[[0, 1, 3]], _summed), LIMIT)
    for scale in SCALES:
        factors = torch.ones(4)
        factors[2] = scale
        whole = clipped(captured(model, x, lambda out, factors=factors: _summed(out) * factors), LIMIT)
        assert all(torch.isfinite(value).all() for value in whole.values())
        assert distance(whole, rest, relative=False) <= LIMIT * (1 + 1e-5), f"loss times {scale}"


def _summed(out: Tensor) -> Tensor:
    return out.float().flatten(1).sum(1) if out.dtype == HALF else out.flatten(1).sum(1)
