"""Per-example gradients and their norms from the kernel against float64."""

import pytest
import torch

from hushgrad.gradients.cuda.instantiate import norms

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "positions", "p", "d"),
    [(1, 1, 1, 1), (2, 1, 7, 3), (3, 17, 5, 33), (2, 50, 33, 17), (1, 9, 1, 70)],
)
def test_gradients_and_norms_are_those_of_float64(batch, positions, p, d, dtype):
    left, right = torch.randn(batch, positions, p).to(dtype), torch.randn(batch, positions, d).to(dtype)
    expected = torch.bmm(left.double().mT, right.double())
    for block in (16, 64):
        norms_B, gradients = norms(left, right, keep=True, block=block)
        assert (norms_B.dtype, gradients.dtype) == (torch.float64, torch.float32)
        assert torch.allclose(gradients.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.allclose(norms_B, expected.square().sum((1, 2)), rtol=1e-5)


def test_norms_are_the_same_whether_gradients_are_kept_or_not():
    left, right = torch.randn(3, 20, 33), torch.randn(3, 20, 18)
    kept, gradients = norms(left, right, keep=True, block=16)
    dropped, nothing = norms(left, right, keep=False, block=16)
    assert torch.equal(kept, dropped)
    assert gradients is not None
    assert nothing is None


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("side", [0, 1])
def test_an_example_that_overflows_shows_and_changes_no_other(value, side):
    """Guarantee: what one example's operands hold, finite or not, changes no other example's norm."""
    factors = [torch.randn(3, 21, 6), torch.randn(3, 21, 20)]
    clean, gradients = norms(*factors, keep=True, block=16)
    factors[side][1, 18, 2] = value
    spoilt, spoilt_gradients = norms(*factors, keep=True, block=16)
    assert not torch.isfinite(spoilt[1])
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])
    assert torch.equal(spoilt_gradients[[0, 2]], gradients[[0, 2]])


def test_terms_that_cancel_are_added_before_they_are_squared():
    left, right = torch.randn(2, 40, 6), torch.randn(2, 40, 5)
    left[0, 20:], right[0, 20:] = left[0, :20], -right[0, :20]
    norms_B, gradients = norms(left, right, keep=True, block=16)
    assert norms_B[0] < 1e-8
    assert torch.allclose(gradients[0], torch.zeros(6, 5), atol=1e-5)


def test_factors_in_any_layout_are_read_where_they_lie():
    left, right = torch.randn(25, 4, 12).transpose(0, 1)[:, ::2, ::3], torch.randn(4, 20, 25).mT[:, ::2]
    found = norms(left, right, keep=True, block=16)
    wanted = norms(left.contiguous(), right.contiguous(), keep=True, block=16)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("shape", [(0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 0, 2)])
def test_nothing_to_sum_is_zero(shape):
    batch, positions, p, d = shape
    norms_B, gradients = norms(torch.ones(batch, positions, p), torch.ones(batch, positions, d), keep=True)
    assert torch.equal(norms_B, torch.zeros(batch, dtype=torch.float64))
    assert torch.equal(gradients, torch.zeros(batch, p, d))


def test_the_same_operands_give_the_same_norms_again():
    """Guarantee: partial sums are added in a fixed order, so that the same operands give the same norms again."""
    left, right = torch.randn(2, 50, 37), torch.randn(2, 50, 38)
    assert torch.equal(norms(left, right, keep=False)[0], norms(left, right, keep=False)[0])
