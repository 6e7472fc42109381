"""Products, attention and lookups: the batch is found after a contraction, or lost in it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from tracking import CONSTANT, PERMUTATION, B, Transform, W, assert_axis_is_true, changed_outside_own_rows, tracked_axis

# On x of shape [B, B, B], the most confusing there is: each with the axis on which the batch must be found.
KEPT: dict[str, tuple[Transform, int]] = {
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
    "addmm": (lambda x: torch.addmm(W[0], x.flatten(0, 1), W), 0),
    "one_hot": (lambda x: F.one_hot(x.argmax(-1), B), 0),
}

# Contractions over the batch, or between examples. The batch must be lost.
LOST: dict[str, Transform] = {
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
    "table of data": lambda x: F.embedding(PERMUTATION, x[:, 0]),
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
