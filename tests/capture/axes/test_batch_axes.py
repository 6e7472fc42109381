"""The batch axis that is tracked, against what really changes in a tensor when one example of the input does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hushgrad.capture.axes.batch_axes import BatchAxes
from hushgrad.capture.mode import CaptureMode
from hushgrad.capture.operators.operator import ForwardContext, GraphAnchor
from hushgrad.capture.uses import UsePool
from hushgrad.errors import PrivacyUnitError

Transform = Callable[[Tensor], Tensor]

UNTRACKED = "untracked"
B = 3


def tracked_axis(transform: Transform, x: Tensor) -> tuple[Tensor, int | str | None]:
    """Run `transform` under the mode on a batch-first `x`; return its output and the axis that is claimed."""
    axes = BatchAxes()
    axes.seed((x,), x.shape[0])
    mode = CaptureMode(ForwardContext(UsePool(), GraphAnchor(), axes, {}, x.shape[0], []), lambda: True)
    with mode:
        out = transform(x)
    return out, axes.get(out) if axes.descends(out) else UNTRACKED


def changed_outside_own_rows(transform: Transform, x: Tensor, out: Tensor, axis: int) -> bool:
    """Whether changing example i changes the output anywhere but in the rows that `axis` assigns to i."""
    batch = x.shape[0]
    for i in range(batch):
        moved = x.clone()
        moved[i] = moved[i] * -1.7 + 0.3 * torch.randn_like(moved[i]) + 5
        differs = (transform(moved) != out).movedim(axis, 0)
        rows = differs.reshape(batch, -1).any(1)
        rows[i] = False
        if rows.any():
            return True
    return False


def assert_axis_is_true(transform: Transform, x: Tensor) -> int | str | None:
    out, axis = tracked_axis(transform, x)
    if isinstance(axis, int):
        assert axis < out.ndim
        assert out.shape[axis] % x.shape[0] == 0
        assert not changed_outside_own_rows(transform, x, out, axis)
    return axis


W = torch.randn(B, B)
CONSTANT = torch.randn(B, B, B)
PERMUTATION = torch.tensor([2, 0, 1])

# On x of shape [B, B, B], the most confusing there is: each with the axis on which the batch must be found.
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
    "unfold": (lambda x: x.unfold(1, 2, 1), 0),
    "x @ W": (lambda x: x @ W, 0),
    "W @ x": (lambda x: W @ x, 0),
    "x @ x.mT": (lambda x: x @ x.mT, 0),
    "bmm": (lambda x: torch.bmm(x, CONSTANT), 0),
    "vector": (lambda x: x @ W[0], 0),
    "W @ x.T": (lambda x: W @ x[:, 0].T, 1),
    "linear": (lambda x: F.linear(x, W), 0),
    "linear on time first": (lambda x: F.linear(x.transpose(0, 1), W), 1),
    "einsum": (lambda x: torch.einsum("btd,dp->tbp", x, W), 1),
    "einsum attention": (lambda x: torch.einsum("bqd,bkd->bqk", x, x), 0),
    "einsum with an ellipsis": (lambda x: torch.einsum("...td,dp->...pt", x, W), 0),
    "einsum with an ellipsis inside": (lambda x: torch.einsum("t...d,d->...t", x.transpose(0, 1), W[0]), 0),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), 0),
    "conv1d": (lambda x: F.conv1d(x, CONSTANT[:, :, :2]), 0),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), 0),
    "avg_pool2d": (lambda x: F.avg_pool2d(x[:, None], 2), 0),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2), 0),
    "layer_norm": (lambda x: F.layer_norm(x, [B]), 0),
    "layer_norm on time first": (lambda x: F.layer_norm(x.transpose(0, 1), [B]), 1),
    "group_norm": (lambda x: F.group_norm(x, 1), 0),
    "instance_norm": (F.instance_norm, 0),
    "normalize": (lambda x: F.normalize(x, dim=-1), 0),
    "setitem": (lambda x: _assigned(x.clone(), (slice(None), 0), 7.0), 0),
    "setitem of rows": (lambda x: _assigned(torch.zeros(B, B), (slice(None), 1), x[:, 0, 0]), 0),
    "scatter_": (lambda x: torch.zeros(B, B).scatter_(1, x[:, 0].argsort(1), 1.0), 0),
    "addmm": (lambda x: torch.addmm(W[0], x.flatten(0, 1), W), 0),
    "one_hot": (lambda x: F.one_hot(x.argmax(-1), B), 0),
}


def _assigned(target: Tensor, index: object, value: object) -> Tensor:
    target[index] = value  # type: ignore[index]
    return target


# On x of shape [B, B, B]: operators that mix, reorder or hide examples. The batch must be lost.
LOST: dict[str, Transform] = {
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
    "x.T @ x": lambda x: x[:, 0].T @ x[:, 0],
    "x @ x.T": lambda x: x[:, 0] @ x[:, 0].T,
    "x @ W of time first": lambda x: x.permute(1, 2, 0) @ W,
    "W @ x in 2-D": lambda x: W @ x[:, 0],
    "linear over the batch": lambda x: F.linear(x[:, 0].T, W),
    "matrix of data": lambda x: F.linear(CONSTANT, x[:, 0]),
    "outer": lambda x: torch.outer(x[:, 0, 0], x[:, 0, 0]),
    "cdist": lambda x: torch.cdist(x[:, 0], x[:, 0]),
    "tensordot": lambda x: torch.tensordot(x, x, dims=([0], [0])),
    "kron": lambda x: torch.kron(x[:, 0], x[:, 0]),
    "cov": lambda x: torch.cov(x[:, 0]),
    "einsum over the batch": lambda x: torch.einsum("btd,bsd->ts", x, x),
    "einsum pairs": lambda x: torch.einsum("bd,cd->bc", x[:, 0], x[:, 0]),
    "einsum renamed": lambda x: torch.einsum("abc,acd->bcd", x.transpose(0, 1), x),
    "einsum onto another ellipsis": lambda x: torch.einsum("...d,...ed->...e", x[:, 0], x.movedim(0, 1)),
    "attention across the batch": lambda x: F.scaled_dot_product_attention(
        x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1)
    ),
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
    "as_strided": lambda x: x.as_strided((B, B, B), (1, B, B * B)),
    "flatten after transpose": lambda x: x.transpose(0, 1).flatten(),
    "two rows for three": lambda x: torch.cat([x, x], 1).reshape(2, -1),
    "broadcast onto time": lambda x: x + x[:, 0],
    "broadcast_tensors onto time": lambda x: torch.broadcast_tensors(x, x[:, 0])[1],
    "time onto batch": lambda x: x + x.transpose(0, 1),
    "renorm": lambda x: x.renorm(2, 0, 1.0),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 0),
    "nonzero": lambda x: x.nonzero(),
    "table of data": lambda x: F.embedding(PERMUTATION, x[:, 0]),
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
    """Guarantee: an operator that has no rule loses the batch."""
    _, axis = tracked_axis(LOST[name], torch.randn(B, B, B))
    assert axis is None


STEPS: list[Transform] = [
    lambda x: x.transpose(0, -1),
    lambda x: x.movedim(0, 1) if x.ndim > 1 else x,
    lambda x: x.unsqueeze(0),
    lambda x: x.unsqueeze(-1),
    lambda x: x.squeeze(),
    lambda x: x[0] if x.ndim > 1 else x,
    lambda x: x[..., 0] if x.ndim > 1 else x,
    lambda x: x[:, :1] if x.ndim > 1 else x,
    lambda x: x.flatten(0, 1) if x.ndim > 1 else x,
    lambda x: x.flatten(-2) if x.ndim > 1 else x,
    lambda x: x.reshape(2, -1),
    lambda x: x.reshape(-1, 2),
    lambda x: x.reshape(2, 2, -1),
    lambda x: x.sum(0),
    lambda x: x.sum(-1),
    lambda x: x.mean(0, keepdim=True),
    lambda x: x.cumsum(-1),
    lambda x: x.softmax(0),
    lambda x: x.flip(-1),
    lambda x: torch.cat([x, x * 2], -1),
    lambda x: torch.stack([x, -x], 0),
    lambda x: torch.stack([x, -x], -1),
    lambda x: x @ x.mT if x.ndim > 1 else x,
    lambda x: x @ torch.ones(x.shape[-1], 2),
    lambda x: x + x.mT if x.ndim > 1 and x.shape[-1] == x.shape[-2] else x,
    lambda x: x.expand(2, *x.shape),
    lambda x: x.repeat_interleave(2, dim=-1),
    lambda x: x.split(1)[0],
    lambda x: x.split(2, -1)[0],
    lambda x: x.diagonal(dim1=0, dim2=-1) if x.ndim > 1 else x,
    lambda x: x.unfold(-1, 1, 1),
    lambda x: x.T if x.ndim == 2 else x,
    lambda x: x - x.amax(-1, keepdim=True),
    lambda x: x.contiguous().view(-1),
    lambda x: x[torch.arange(2), torch.tensor([1, 0])] if x.ndim > 1 and min(x.shape[:2]) == 2 else x,
]


@settings(max_examples=300, deadline=None)
@given(
    batch=st.sampled_from([2, 2, 3, 4]),
    rest=st.lists(st.sampled_from([1, 2, 2, 3, 4]), min_size=1, max_size=2),
    steps=st.lists(st.sampled_from(range(len(STEPS))), min_size=1, max_size=6),
)
def test_no_chain_of_operators_makes_the_tracked_axis_untrue(batch: int, rest: list[int], steps: list[int]) -> None:
    x = torch.randn(batch, *rest, dtype=torch.float64)

    def chain(value: Tensor) -> Tensor:
        for step in steps:
            if value.ndim == 0 or value.ndim > 6 or value.numel() > 4096:
                break
            try:
                value = STEPS[step](value)
            except (RuntimeError, IndexError):
                continue  # the step does not fit the shape
        return value

    assert_axis_is_true(chain, x)


def test_a_write_that_mixes_examples_in_place_is_refused() -> None:
    x = torch.randn(B, B)
    with pytest.raises(PrivacyUnitError, match="in place"):
        tracked_axis(lambda x: x.clone().add_(x.T), x)
    with pytest.raises(PrivacyUnitError, match="in place"):
        tracked_axis(lambda x: _assigned(x.clone(), PERMUTATION, x.clone()), x)
    with pytest.raises(PrivacyUnitError, match="in place"):
        tracked_axis(lambda x: x.clone().unsqueeze(0).squeeze_(0), x)


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.clone().transpose_(0, 1),
        lambda x: x.clone().transpose_(-1, 0).swapaxes_(0, 1).tanh(),
        lambda x: x.clone().swapdims_(1, 2),
        lambda x: x.clone().unsqueeze_(0),
        lambda x: x.clone().unsqueeze_(-1).transpose_(-1, 0),
        lambda x: x.clone().unsqueeze_(dim=1).swapaxes_(axis0=0, axis1=2),
        lambda x: x.clone().transpose_(dim0=0, dim1=2),
    ],
)
@pytest.mark.parametrize("shape", [(B, B, B), (B, 3, 2)])
def test_the_batch_is_followed_where_a_tensor_is_turned_in_place(
    move: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    assert tracked_axis(move, x)[1] is not None
    assert_axis_is_true(move, x)


def test_a_buffer_written_through_a_view_is_not_taken_for_a_constant() -> None:
    def through_view(x: Tensor) -> Tensor:
        buffer = torch.zeros(B, B)
        buffer[0].copy_(x[:, 0])
        return buffer

    assert tracked_axis(through_view, torch.randn(B, B))[1] is None


def test_inputs_with_another_number_of_rows_have_no_axis_and_one_row_is_a_constant() -> None:
    axes = BatchAxes()
    x, mask, positions = torch.randn(4, 2), torch.ones(7, 7), torch.arange(7)[None]
    assert axes.seed(((x, {"mask": mask}), positions), 4) == 4
    assert axes.get(x) == 0
    assert axes.descends(mask)
    assert axes.get(mask) is None
    assert not axes.descends(positions)


def test_states_of_a_frozen_recurrent_layer_carry_the_batch_on_their_second_axis() -> None:
    layer = torch.nn.LSTM(2, 2, batch_first=True, bidirectional=True).requires_grad_(False)
    x = torch.randn(2, 2, 2)  # two directions, two examples, two steps: shapes tell nothing
    for transform, expected in (
        (lambda x: layer(x)[0], 0),
        (lambda x: layer(x)[1][0], 1),
        (lambda x: layer(x)[1][1], 1),
    ):
        out, axis = tracked_axis(transform, x)
        assert axis == expected
        assert not changed_outside_own_rows(transform, x, out, expected)


def test_attention_weights_carry_the_batch_first_and_the_output_second() -> None:
    layer = torch.nn.MultiheadAttention(4, 1).requires_grad_(False)
    x = torch.randn(3, 3, 4)

    def attend(x: Tensor, which: int) -> Tensor:
        y = x.transpose(0, 1)
        result: Tensor = layer(y, y, y)[which]
        return result

    assert assert_axis_is_true(lambda x: attend(x, 0), x) == 1
    assert assert_axis_is_true(lambda x: attend(x, 1), x) == 0
