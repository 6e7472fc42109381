"""Operators on matrices, images and rows, one by one or measured: the batch is found where it is, or lost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from tracking import CONSTANT, PERMUTATION, B, Transform, W, assert_axis_is_true, tracked_axis

CONSTANT, W = CONSTANT.double(), W.double()


def spd(x: Tensor) -> Tensor:
    """A positive definite matrix for each example."""
    return x @ x.mT + torch.eye(B)


# On x of shape [B, B, B], the most confusing there is: each with the axis on which the batch must be found.
KEPT: dict[str, tuple[Transform, int]] = {
    "inv": (lambda x: torch.linalg.inv(x), 0),
    "pinv": (lambda x: torch.linalg.pinv(x), 0),
    "det": (lambda x: torch.linalg.det(x), 0),
    "slogdet": (lambda x: torch.linalg.slogdet(x)[1], 0),
    "logdet": (lambda x: spd(x).logdet(), 0),
    "cholesky": (lambda x: torch.linalg.cholesky(spd(x)), 0),
    "qr": (lambda x: torch.linalg.qr(x)[1], 0),
    "svd": (lambda x: torch.linalg.svd(x)[1], 0),
    "eigh": (lambda x: torch.linalg.eigh(x)[0], 0),
    "matrix_exp": (lambda x: torch.matrix_exp(x / 10), 0),
    "matrix_power": (lambda x: torch.linalg.matrix_power(x, 2), 0),
    "matrix_norm": (lambda x: torch.linalg.matrix_norm(x), 0),
    "det behind another dimension": (lambda x: torch.linalg.det(x.unsqueeze(0)), 1),
    "solve": (lambda x: torch.linalg.solve(x, x), 0),
    "solve of constants": (lambda x: torch.linalg.solve(x, CONSTANT[:1]), 0),
    "solve of one matrix": (lambda x: torch.linalg.solve(CONSTANT[0], x), 0),
    "solve_triangular": (lambda x: torch.linalg.solve_triangular(CONSTANT[0].triu(), x, upper=True), 0),
    "lstsq": (lambda x: torch.linalg.lstsq(x, x.flip(-1))[0], 0),
    "cross": (lambda x: torch.cross(x, x.flip(-1), dim=-1), 0),
    "linalg.cross": (lambda x: torch.linalg.cross(x, CONSTANT[:1]), 0),
    "vecdot": (lambda x: torch.linalg.vecdot(x, x), 0),
    "inner": (lambda x: torch.inner(x, W), 0),
    "tensordot": (lambda x: torch.tensordot(x, W, 1), 0),
    "tensordot of two dimensions": (lambda x: torch.tensordot(x, W, dims=([1, 2], [0, 1])), 0),
    "tensordot from the left": (lambda x: torch.tensordot(W, x, dims=([0], [1])), 1),
    "outer": (lambda x: torch.outer(x[:, 0, 0], W[0]), 0),
    "outer from the left": (lambda x: torch.outer(W[0], x[:, 0, 0]), 1),
    "kron": (lambda x: torch.kron(x[:, 0, :1], W), 0),
    "multi_dot": (lambda x: torch.linalg.multi_dot([x[:, 0], W, W]), 0),
    "trapezoid": (lambda x: torch.trapezoid(x, dim=1), 0),
    "hstack": (lambda x: torch.hstack([x, x]), 0),
    "dstack": (lambda x: torch.dstack([x, x * 2]), 0),
    "diag_embed": (lambda x: torch.diag_embed(x), 0),
    "fliplr": (lambda x: torch.fliplr(x), 0),
    "flipud of time first": (lambda x: torch.flipud(x.transpose(0, 1)), 1),
    "rot90": (lambda x: torch.rot90(x, 1, (1, 2)), 0),
    "slice_scatter": (lambda x: torch.slice_scatter(x, x[:, :1] * 2, 1, 0, 1), 0),
    "cdist": (lambda x: torch.cdist(x, x), 0),
    "cdist to constants": (lambda x: torch.cdist(x[:, 0], W), 0),
    "cdist from constants": (lambda x: torch.cdist(W, x[:, 0]), 1),
    "pairwise_distance": (lambda x: F.pairwise_distance(x, x + 1), 0),
    "pairwise_distance to constants": (lambda x: F.pairwise_distance(x, CONSTANT, keepdim=True), 0),
    "cosine_similarity": (lambda x: F.cosine_similarity(x, x + 1), 0),
    "cosine_similarity to constants": (lambda x: F.cosine_similarity(x[:, 0, None], W[None], dim=-1), 0),
    "einsum without an arrow": (lambda x: torch.einsum("bti,ij", x, W), 0),
    "einsum without an arrow, in another order": (lambda x: torch.einsum("zti,ij", x, W), 2),
    "einsum with an ellipsis and no arrow": (lambda x: torch.einsum("...i,ij", x, W), 0),
    "searchsorted": (lambda x: torch.searchsorted(W[0].sort().values, x), 0),
    "searchsorted row by row": (lambda x: torch.searchsorted(x.sort().values, x), 0),
    "bucketize": (lambda x: torch.bucketize(x, W[0].sort().values), 0),
    "complex": (lambda x: torch.complex(x, CONSTANT), 0),
    "polar": (lambda x: torch.polar(x.abs(), x), 0),
    "view_as_real": (lambda x: torch.view_as_real(torch.complex(x, x).transpose(0, 1)), 1),
    "view_as_complex": (lambda x: torch.view_as_complex(x[..., :2].contiguous()), 0),
    "fake_quantize": (lambda x: torch.fake_quantize_per_tensor_affine(x.float(), 0.1, 0, -128, 127), 0),
    "affine_grid": (lambda x: F.affine_grid(x[:, :2], [B, 1, B, B], align_corners=False), 0),
    "grid_sample": (lambda x: F.grid_sample(x[:, None], x[:, :, None, :2], align_corners=False), 0),
    "grid_sample of constants": (
        lambda x: F.grid_sample(CONSTANT[:, None], x[:, :, None, :2], align_corners=False), 0),
    "fold": (lambda x: F.fold(x.repeat(1, 1, 3)[..., :4].repeat(1, 4, 1), (3, 3), 2), 0),
    "max_unpool1d": (lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2), 0),
    "channel_shuffle": (lambda x: F.channel_shuffle(x, B), 0),
    "squared errors": (lambda x: F.mse_loss(x, CONSTANT, reduction="none"), 0),
    "cross entropies": (lambda x: F.cross_entropy(x, x.argmax(1), reduction="none"), 0),
    "renamed split": (lambda x: x.split_with_sizes([1, 2], 1)[1], 0),
}  # fmt: skip

# The same operators over the batch, or between examples. The batch must be lost.
LOST: dict[str, Transform] = {
    "inv over the batch": lambda x: torch.linalg.inv(x[:, 0] + W),
    "det over the batch": lambda x: torch.linalg.det(x.transpose(0, 1)),
    "svd over the batch": lambda x: torch.linalg.svd(x[:, 0])[0],
    "matrix_norm over the batch": lambda x: torch.linalg.matrix_norm(x.transpose(0, 1)),
    "solve of rows": lambda x: torch.linalg.solve(CONSTANT[0], x[:, 0]),
    "solve of rows broadcast": lambda x: torch.linalg.solve(CONSTANT, x[:, 0, :2]),
    "solve of a constant for each example": lambda x: torch.linalg.solve(x + W, CONSTANT),
    "solve by the batch": lambda x: torch.linalg.solve(x[:, 0] + W, CONSTANT),
    "lstsq over the batch": lambda x: torch.linalg.lstsq(x[:, 0], W)[0],
    "cross along the batch": lambda x: torch.cross(x, CONSTANT, dim=0),
    "cross with an other": lambda x: torch.linalg.cross(x, x[:1]),
    "inner of examples": lambda x: torch.inner(x[:, 0], x[:, 0]),
    "tensordot over the batch": lambda x: torch.tensordot(x, x, dims=([0], [0])),
    "tensordot of examples": lambda x: torch.tensordot(x, x.detach(), dims=([2], [2])),
    "outer of examples": lambda x: torch.outer(x[:, 0, 0], x[:, 0, 0]),
    "kron of examples": lambda x: torch.kron(x[:, 0], x[:, 0]),
    "trapezoid along the batch": lambda x: torch.trapezoid(x, dim=0),
    "vstack": lambda x: torch.vstack([x, x])[1 : B + 1],
    "flipud": lambda x: torch.flipud(x),
    "rot90 of the batch": lambda x: torch.rot90(x, 2, (0, 1)),
    "cdist of examples": lambda x: torch.cdist(x[:, 0], x[:, 0].detach()),
    "pairwise_distance of the batch's rows": lambda x: F.pairwise_distance(x.transpose(0, 1), x),
    "pairwise_distance over the batch": lambda x: F.pairwise_distance(x.movedim(0, 2), CONSTANT),
    "cosine_similarity over the batch": lambda x: F.cosine_similarity(x.transpose(0, 1), CONSTANT),
    "cosine_similarity of examples": lambda x: F.cosine_similarity(x[:, None, 0], x[None, :, 0], dim=-1),
    "einsum that sums the batch": lambda x: torch.einsum("bti,bij", x, x),
    "einsum of pairs": lambda x: torch.einsum("bi,ci", x[:, 0], x[:, 0]),
    "searchsorted in the batch": lambda x: torch.searchsorted(x[:, 0, 0].contiguous(), W),
    "searchsorted in the sorted batch": lambda x: torch.searchsorted(x[:, 0, 0].contiguous(), x),
    "searchsorted over rows of the batch": lambda x: torch.searchsorted(x.movedim(0, 2).contiguous(), CONSTANT),
    "bucketize by the batch": lambda x: torch.bucketize(x, x[:, 0, 0].contiguous()),
    "complex of other examples": lambda x: torch.complex(x, x.transpose(0, 1)),
    "fake_quantize by the batch": lambda x: torch.fake_quantize_per_tensor_affine(
        x.float(), x.float().abs().amax(), torch.zeros((), dtype=torch.int32), -128, 127
    ),
    "grid of the batch's mean": lambda x: F.grid_sample(
        x[:, None], x.mean(0, keepdim=True)[..., None, :2].expand(B, -1, -1, -1), align_corners=False
    ),
    "grid_sample of examples as channels": lambda x: F.grid_sample(
        x[None], CONSTANT[:1, :, None, :2], align_corners=False
    ),
    "fold of channels": lambda x: F.fold(x[:, 0, :1].repeat(4, 4), (3, 3), 2),
    "max_unpool1d along the batch": lambda x: F.max_unpool1d(*F.max_pool1d(x.movedim(0, 2), 2, return_indices=True), 2),
    "channel_shuffle of the batch": lambda x: F.channel_shuffle(x.transpose(0, 1), B),
    "cross entropy weighted by the batch": lambda x: F.cross_entropy(
        x[:, :, 0], PERMUTATION, weight=x[:, 0, 0], reduction="none"
    ),
    "a mean error": lambda x: F.mse_loss(x, CONSTANT),
    "isin of values that are said to be unique": lambda x: torch.isin(x, CONSTANT, assume_unique=True),
    "renorm": lambda x: x.renorm(2, 1, 100.0),
}


@pytest.mark.parametrize("name", KEPT)
def test_the_batch_is_found_where_it_is(name: str) -> None:
    """Guarantee: a tensor whose axis is known holds at each place along it values from that one example alone."""
    transform, expected = KEPT[name]
    assert assert_axis_is_true(transform, torch.randn(B, B, B, dtype=torch.float64)) == expected


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("values", ["drawn", "alike", "sorted"])
def test_the_batch_is_lost_where_examples_meet(name: str, values: str) -> None:
    """Also where the values are all alike, or sorted already."""
    x = {
        "drawn": torch.randn(B, B, B, dtype=torch.float64),
        "alike": torch.eye(B, dtype=torch.float64).expand(B, B, B).clone(),
        "sorted": torch.arange(27.0, dtype=torch.float64).view(B, B, B) + torch.eye(B),
    }[values]
    assert tracked_axis(LOST[name], x)[1] is None
