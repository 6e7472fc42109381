"""Norms from Gram matrices in the kernel against float64 and against torch's way."""

import pytest
import torch

from hushgrad.gradients.cuda.gram import norms
from hushgrad.gradients.outer import _gram

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def exact(left, right):
    """Return norms in float64."""
    return torch.bmm(left.double().mT, right.double()).square().sum((1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "positions", "p", "d"),
    [(1, 1, 1, 1), (2, 1, 7, 3), (3, 17, 5, 33), (2, 38, 33, 17)],
)
def test_norms_are_those_of_float64(batch, positions, p, d, dtype):
    left, right = torch.randn(batch, positions, p).to(dtype), torch.randn(batch, positions, d).to(dtype)
    assert torch.allclose(norms(left, right, block=16), exact(left, right), rtol=1e-5)


def test_the_kernel_agrees_with_torchs_way_at_its_own_block_size():
    left, right = torch.randn(3, 96, 20), torch.randn(3, 96, 9)
    assert torch.allclose(norms(left, right), _gram(left, right), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38, 1e25])
@pytest.mark.parametrize("side", [0, 1])
def test_an_example_that_overflows_shows_and_changes_no_other(value, side):
    """Guarantee: what one example's operands hold, finite or not, changes no other example's norm."""
    factors = [torch.randn(3, 21, 6), torch.randn(3, 21, 20)]
    clean = norms(*factors, block=16)
    factors[side][1, 18, 2] = value
    spoilt = norms(*factors, block=16)
    assert not torch.isfinite(spoilt[1])
    assert not torch.isfinite(_gram(*factors)[1])
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])


def test_factors_in_any_layout_are_read_where_they_lie():
    wide_left, wide_right = torch.randn(25, 4, 12), torch.randn(4, 20, 25)
    left, right = wide_left.transpose(0, 1)[:, ::2, ::3], wide_right.mT[:, ::2]
    found = norms(left, right.expand(4, 13, 20), block=16)
    wanted = norms(left.contiguous(), right.contiguous(), block=16)
    assert torch.equal(found, wanted)
    one = torch.randn(1, 9, 5).expand(3, 9, 5)
    assert norms(one, one).unique().numel() == 1


@pytest.mark.parametrize("shape", [(0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 0, 2)])
def test_nothing_to_sum_is_zero(shape):
    batch, positions, p, d = shape
    found = norms(torch.ones(batch, positions, p), torch.ones(batch, positions, d))
    assert torch.equal(found, torch.zeros(batch, dtype=torch.float64))


def test_the_same_operands_give_the_same_norms_again():
    """Guarantee: partial sums are added in a fixed order, so that the same operands give the same norms again."""
    left, right = torch.randn(2, 50, 7), torch.randn(2, 50, 8)
    assert torch.equal(norms(left, right, block=16), norms(left, right, block=16))
