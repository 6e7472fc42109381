"""Arithmetic, views, indices and reductions: the batch is found where it is, or lost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tracking import CONSTANT, PERMUTATION, B, Transform, assert_axis_is_true, assigned, tracked_axis

# On x of shape [B, B, B], the most confusing there is: each with the axis on which the batch must be found.
RAGGED = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])[:, :, None].expand(B, B, B)
"""9, 6 and 3 places: as many as 3 examples with 3 values each have only by chance, and not in this order."""
EVEN = torch.tensor([[True, True, False], [False, True, True], [True, False, True]])


def _written(out: Tensor, view: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    view(out).copy_(value)
    return out


def _rest(out: Tensor) -> Tensor:
    return out[..., 1:]


KEPT: dict[str, tuple[Transform, int]] = {
    "broadcast_tensors": (lambda x: torch.broadcast_tensors(x[:, 0, :1], CONSTANT[0])[0], 0),
    "broadcast_tensors behind": (lambda x: torch.broadcast_tensors(CONSTANT, x[:, 0])[1], 1),
    "tanh": (lambda x: x.tanh(), 0),
    "F.gelu": (F.gelu, 0),
    "in place relu": (lambda x: x.clone().relu_(), 0),
    "+ constant": (lambda x: x + CONSTANT, 0),
    "1 - x": (lambda x: 1 - x, 0),
    "+=": (lambda x: x.clone().__iadd__(CONSTANT), 0),
    "where": (lambda x: torch.where(CONSTANT > 0, x, 0.0), 0),
    "fft": (lambda x: torch.fft.fft(x).real, 0),
    "fft2": (lambda x: torch.fft.fft2(x).abs(), 0),
    "rfftn": (lambda x: torch.fft.irfftn(torch.fft.rfftn(x, dim=(1, 2)), dim=(1, 2), s=(3, 3)), 0),
    "stft": (lambda x: torch.stft(x.flatten(1), 4, return_complex=True, window=torch.ones(4)).abs(), 0),
    "transpose": (lambda x: x.transpose(0, 1), 1),
    "transpose by name": (lambda x: x.transpose(dim0=2, dim1=0), 2),
    "mT of transpose": (lambda x: x.transpose(0, 1).mT, 2),
    "2-D T": (lambda x: x[:, 0].T, 1),
    "permute": (lambda x: x.permute(2, 0, 1), 1),
    "permute list": (lambda x: torch.permute(x, [1, 2, 0]), 2),
    "movedim": (lambda x: x.movedim(0, -1), 2),
    "movedim two": (lambda x: x.movedim((0, 1), (1, 2)), 1),
    "swapaxes": (lambda x: x.swapaxes(0, 2), 2),
    "unsqueeze": (lambda x: x.unsqueeze(0), 1),
    "unsqueeze -1": (lambda x: x.unsqueeze(-1), 0),
    "squeeze back": (lambda x: x.unsqueeze(0).squeeze(), 0),
    "squeeze dim": (lambda x: x.unsqueeze(1).squeeze(1), 0),
    "x[:, 0]": (lambda x: x[:, 0], 0),
    "x[None]": (lambda x: x[None], 1),
    "x[..., 1:]": (lambda x: x[..., 1:], 0),
    "x[:, None, 0]": (lambda x: x[:, None, 0], 0),
    "x[:, [0, 2]]": (lambda x: x[:, [0, 2]], 0),
    "x[..., idx]": (lambda x: x[..., PERMUTATION], 0),
    "x[:, 0, idx]": (lambda x: x[:, 0, PERMUTATION], 0),
    "x[arange, idx]": (lambda x: x[torch.arange(B), PERMUTATION], 0),
    "x[arange, argmax]": (lambda x: x[torch.arange(B), x[:, :, 0].argmax(1)], 0),
    "transposed [0]": (lambda x: x.transpose(0, 1)[0], 0),
    "select": (lambda x: x.select(1, 0), 0),
    "unbind 1": (lambda x: x.unbind(1)[2], 0),
    "iteration over time": (lambda x: list(x.transpose(0, 1))[1], 0),
    "narrow": (lambda x: x.narrow(1, 0, 2), 0),
    "split": (lambda x: x.split(2, 1)[0], 0),
    "chunk": (lambda x: torch.chunk(x, 3, -1)[1], 0),
    "diagonal": (lambda x: torch.diagonal(x, dim1=1, dim2=2), 0),
    "expand": (lambda x: x[:, :1].expand(-1, B, -1), 0),
    "expand in front": (lambda x: x.expand(2, B, B, B), 1),
    "flatten": (lambda x: x.flatten(1), 0),
    "fold and unfold": (lambda x: x.flatten(0, 1).tanh().reshape(B, B, B), 0),
    "fold": (lambda x: x.reshape(-1, B), 0),
    "view of transpose": (lambda x: x.transpose(0, 1).reshape(B, B, 1, B), 1),
    "heads": (lambda x: x.view(B, B, 1, B).transpose(1, 2), 0),
    "reshape_as of time first": (lambda x: x.transpose(0, 1)[..., 0].reshape_as(x[:, :, :1]), 1),
    "unflatten": (lambda x: x.flatten(1).unflatten(1, (B, B)), 0),
    "one row of all": (lambda x: x.reshape(1, -1), 1),
    "heads folded behind the batch": (lambda x: x.transpose(0, 1).reshape(B, B * B, 1), 1),
    "cat 1": (lambda x: torch.cat([x, CONSTANT], 1), 0),
    "stack 0": (lambda x: torch.stack([x[:, 0], x[:, 1]]), 1),
    "stack 1": (lambda x: torch.stack([x[:, 0], x[:, 1]], dim=1), 0),
    "repeat": (lambda x: x.repeat(1, 2, 1), 0),
    "repeat_interleave 1": (lambda x: x.repeat_interleave(2, dim=1), 0),
    "sum 1": (lambda x: x.sum(1), 0),
    "mean keepdim": (lambda x: x.mean(-1, keepdim=True), 0),
    "mean of two": (lambda x: x.mean((1, 2)), 0),
    "max": (lambda x: x.max(1).values, 0),
    "norm": (lambda x: x.norm(2, 1), 0),
    "std": (lambda x: x.std(1), 0),
    "sum of transpose": (lambda x: x.transpose(0, 1).sum(0), 0),
    "softmax": (lambda x: x.softmax(-1), 0),
    "F.softmax": (lambda x: F.softmax(x, dim=1), 0),
    "cumsum 1": (lambda x: x.cumsum(1), 0),
    "sort": (lambda x: x.sort().values, 0),
    "topk": (lambda x: x.topk(2, dim=1).values, 0),
    "flip 1": (lambda x: x.flip(1), 0),
    "roll 1": (lambda x: x.roll(1, 1), 0),
    "gather 1": (lambda x: x.gather(1, CONSTANT.argsort(1)), 0),
    "index_select 1": (lambda x: x.index_select(1, PERMUTATION), 0),
    "pad": (lambda x: F.pad(x, (1, 1, 2, 0)), 0),
    "pad that names the batch": (lambda x: F.pad(x, (1, 1, 2, 0, 0, 0)), 0),
    "pad in front of the batch": (lambda x: F.pad(x.transpose(0, 2), (0, 0, 0, 0, 2, 1)), 2),
    "repeat_interleave 0": (lambda x: x.repeat_interleave(2, dim=0), 0),
    "repeat_interleave 0 of blocks": (lambda x: x.flatten(0, 1).repeat_interleave(2, 0).view(B, 2 * B, B), 0),
    "as_strided in windows": (lambda x: x.as_strided((B, 2, 2, B), (B * B, B, B, 1)), 0),
    "as_strided in another order": (lambda x: x.as_strided((B, B, B), (1, B, B * B)), 2),
    "as_strided of time first": (lambda x: x.transpose(0, 1).as_strided((B, B, B), (1, B * B, B)), 1),
    "masked_scatter": (lambda x: x.masked_scatter(x == x.amax((1, 2), keepdim=True), x[:, 0, :1]), 0),
    "masked_scatter into constants": (lambda x: torch.zeros(B, B).masked_scatter(EVEN, x[:, 0, :2]), 0),
    "masked_scatter_": (lambda x: x.clone().masked_scatter_(EVEN[:, :, None], x[:, :2]), 0),
    "written into a view": (lambda x: _written(torch.zeros(B, 2, B), lambda out: out[:, 0], x[:, 1]), 0),
    "written into two views": (
        lambda x: _written(_written(torch.zeros(B, B, B), lambda out: out[..., :1], x[..., 1:2]), _rest, x[..., 1:]),
        0,
    ),
    "unfold": (lambda x: x.unfold(1, 2, 1), 0),
    "conv1d": (lambda x: F.conv1d(x, CONSTANT[:, :, :2]), 0),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), 0),
    "avg_pool2d": (lambda x: F.avg_pool2d(x[:, None], 2), 0),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2), 0),
    "layer_norm": (lambda x: F.layer_norm(x, [B]), 0),
    "layer_norm on time first": (lambda x: F.layer_norm(x.transpose(0, 1), [B]), 1),
    "group_norm": (lambda x: F.group_norm(x, 1), 0),
    "instance_norm": (F.instance_norm, 0),
    "normalize": (lambda x: F.normalize(x, dim=-1), 0),
    "setitem": (lambda x: assigned(x.clone(), (slice(None), 0), 7.0), 0),
    "setitem of rows": (lambda x: assigned(torch.zeros(B, B), (slice(None), 1), x[:, 0, 0]), 0),
    "scatter_": (lambda x: torch.zeros(B, B).scatter_(1, x[:, 0].argsort(1), 1.0), 0),
}

# On x of shape [B, B, B]: operators that mix, reorder or hide examples. The batch must be lost.
LOST: dict[str, Transform] = {
    "broadcast_tensors onto time": lambda x: torch.broadcast_tensors(x, x[:, 0])[1],
    "fftn over everything": lambda x: torch.fft.fftn(x).real,
    "flip": lambda x: x.flip(0),
    "flip all": lambda x: torch.flip(x, (0, 1)),
    "fliplr of transpose": lambda x: torch.fliplr(x.transpose(0, 1)),
    "roll": lambda x: x.roll(1, 0),
    "roll flat": lambda x: x.roll(1),
    "sort": lambda x: x.sort(0).values,
    "msort": torch.msort,
    "argsort": lambda x: x.argsort(0),
    "x[permutation]": lambda x: x[PERMUTATION],
    "x[list]": lambda x: x[[2, 0, 1]],
    "x[mask]": lambda x: x[torch.ones(B, dtype=torch.bool)],
    "x[permutation, arange]": lambda x: x[PERMUTATION, torch.arange(B)],
    "x[:, rows of data]": lambda x: x[:, x[:, 0, 0].argsort()],
    "indices apart": lambda x: x[None][PERMUTATION * 0, :, PERMUTATION],
    "x[::1] shifted": lambda x: torch.cat([x, x])[1:4],
    "index_select": lambda x: x.index_select(0, PERMUTATION),
    "gather": lambda x: x.gather(0, CONSTANT.argsort(0)),
    "take": lambda x: x.take(torch.arange(B**3).reshape(B, B, B).transpose(0, 1)),
    "take_along_dim": lambda x: torch.take_along_dim(x, CONSTANT.argsort(0), 0),
    "cumsum": lambda x: x.cumsum(0),
    "cummax": lambda x: x.cummax(0).values,
    "softmax": lambda x: x.softmax(0),
    "F.log_softmax implicit": lambda x: F.log_softmax(x[:, 0, 0]),
    "x - mean": lambda x: x - x.mean(0),
    "x - mean keepdim": lambda x: x - x.mean(0, keepdim=True),
    "x / max": lambda x: x / x.max(),
    "mean then repeat": lambda x: x.mean(0, keepdim=True).expand(B, -1, -1),
    "conv of an image [B, H, W]": lambda x: F.conv2d(x, CONSTANT[:, :, None]),
    "conv over the batch": lambda x: F.conv1d(x.permute(1, 2, 0), CONSTANT[:, :, :1]),
    "torch.batch_norm": lambda x: torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False),
    "layer_norm over the batch": lambda x: F.layer_norm(x.transpose(0, 2), [B]),
    "pad 0": lambda x: F.pad(x, (0, 0, 0, 0, 1, -1)),
    "circular": lambda x: F.pad(x.movedim(0, 2), (1, 1), mode="circular")[:, :, :B],
    "repeat": lambda x: x.repeat(2, 1, 1),
    "tile": lambda x: torch.tile(x, (2, 1, 1)),
    "repeat_interleave flat": lambda x: x[:, 0, 0].repeat_interleave(2),
    "cat 0": lambda x: torch.cat([x[:, :1], x[:, 1:2]]),
    "vstack": lambda x: torch.vstack([x, x]),
    "unfold 0": lambda x: x.unfold(0, B, 1),
    "as_strided of another part of each": lambda x: x.as_strided((B, B, B - 1), (B * B - 1, B, 1)),
    "as_strided of memory outside": lambda x: x[:, :1].as_strided((B, B, B), (B * B, B, 1)),
    "as_strided of overlapping data": lambda x: x[0].expand(B, B, B).as_strided((B, B, B), (0, B, 1)),
    "repeat_interleave by numbers for each row": lambda x: x.repeat_interleave(PERMUTATION, dim=0),
    "masked_scatter of too many values": lambda x: x.masked_scatter(x > x.median(), x),
    "masked_scatter of unequal counts": lambda x: x.masked_scatter(RAGGED, x[:, :2]),
    "masked_scatter of constants' places": lambda x: x.transpose(0, 1).masked_scatter(x > -9, x),
    "masked_scatter of one list of values": lambda x: x.masked_scatter(x > -9, x.transpose(0, 1)),
    "flatten after transpose": lambda x: x.transpose(0, 1).flatten(),
    "two rows for three": lambda x: torch.cat([x, x], 1).reshape(2, -1),
    "broadcast onto time": lambda x: x + x[:, 0],
    "time onto batch": lambda x: x + x.transpose(0, 1),
    "renorm": lambda x: x.renorm(2, 0, 1.0),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "nonzero": lambda x: x.nonzero(),
    "aten": lambda x: torch.ops.aten.flip(x, [0]),
    "fft over the batch": lambda x: torch.fft.fft(x, dim=0).real,
}


@pytest.mark.parametrize("name", KEPT)
def test_the_batch_is_found_where_it_is(name: str) -> None:
    """Guarantee: a tensor whose axis is known holds at each place along it values from that one example alone."""
    transform, expected = KEPT[name]
    assert assert_axis_is_true(transform, torch.randn(B, B, B)) == expected


@pytest.mark.filterwarnings("ignore:Implicit dimension")
@pytest.mark.parametrize("name", LOST)
def test_the_batch_is_lost_where_examples_mix_or_change_places(name: str) -> None:
    """Guarantee: an operator that has no rule loses the batch."""
    _, axis = tracked_axis(LOST[name], torch.randn(B, B, B))
    assert axis is None
