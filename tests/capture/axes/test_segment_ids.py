"""Rows in irregular order: who is said to own a row, against whose change really reaches it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from hushgrad.capture.axes.batch_axes import BatchAxes
from hushgrad.capture.axes.owners import BatchLocation, SegmentIds, Whole, location_of
from hushgrad.capture.mode import CaptureMode
from hushgrad.capture.operators.operator import ForwardContext, GraphAnchor
from hushgrad.capture.uses import UsePool

Transform = Callable[[Tensor], Tensor]

B, T, D = 3, 3, 3
ORDER = torch.tensor([2, 0, 1])
LENGTHS = torch.tensor([2, 3, 1])
TABLE = torch.randn(B * T, D, dtype=torch.float64)


def location_of_output(transform: Transform, x: Tensor) -> tuple[Tensor, BatchLocation]:
    """Run `transform` under the mode on a batch-first `x`; return its output and where its examples are said to be."""
    axes = BatchAxes()
    axes.seed((x,), x.shape[0])
    with CaptureMode(ForwardContext(UsePool(), GraphAnchor(), axes, {}, x.shape[0], []), lambda: True):
        out = transform(x)
    assert axes.descends(out)
    return out, axes.location(out)


def other_values(x: Tensor, i: int) -> Tensor:
    """The batch with other values in one example."""
    moved = x.clone()
    moved[i] = moved[i] * -1.7 + 0.3 * torch.randn_like(moved[i]) + 5
    return moved


def assert_owners_are_true(transform: Transform, x: Tensor) -> BatchLocation:
    """Check that changing an example changes the rows that it owns and no others."""
    out, location = location_of_output(transform, x)
    if location is None:
        return None
    if isinstance(location, Whole):
        for i in set(range(x.shape[0])) - {location.example}:
            assert torch.equal(transform(other_values(x, i)), out)
        return location
    dim = location.dim if isinstance(location, SegmentIds) else location
    size = out.shape[dim]
    rows = (
        location.rows
        if isinstance(location, SegmentIds)
        else torch.arange(x.shape[0]).repeat_interleave(size // x.shape[0])
    )
    for i in range(x.shape[0]):
        differs = (transform(other_values(x, i)) != out).movedim(dim, 0).reshape(size, -1).any(1)
        assert not (differs & (rows != i)).any()
    return location


def packed(x: Tensor) -> PackedSequence:
    return pack_padded_sequence(x, LENGTHS[: x.shape[0]], batch_first=True, enforce_sorted=False)


STARTS: dict[str, Transform] = {
    "time first, folded": lambda x: x.transpose(0, 1).flatten(0, 1),
    "sorted": lambda x: x[ORDER],
    "sorted by index_select": lambda x: x.index_select(0, ORDER),
    "repeated and left out": lambda x: x[torch.tensor([1, 1, 2, 1])],
    "packed": lambda x: packed(x).data,
    "padded again, longest first": lambda x: torch._VF._pad_packed_sequence(*packed(x)[:2], False, 0.0, T)[0],
}
KEPT: dict[str, Transform] = {
    "tanh": lambda x: x.tanh(),
    "times a constant": lambda x: x * TABLE[0],
    "of itself": lambda x: x + x.sin(),
    "linear": lambda x: F.linear(x, TABLE[:D]),
    "layer norm": lambda x: F.layer_norm(x, (D,)),
    "cast": lambda x: x.float().double(),
    "dropout": lambda x: F.dropout(x, 0.0),
    "a slice of the last dimension": lambda x: x[..., :2],
}


@pytest.mark.parametrize("step", KEPT)
@pytest.mark.parametrize("start", STARTS)
def test_rows_treated_alike_keep_their_owners(start: str, step: str) -> None:
    x = torch.randn(B, T, D, dtype=torch.float64)
    _, location = location_of_output(STARTS[start], x)
    assert isinstance(location, SegmentIds)
    after = assert_owners_are_true(lambda x: KEPT[step](STARTS[start](x)), x)
    assert isinstance(after, SegmentIds)
    assert after.same_rows(location)


LOST: dict[str, Transform] = {
    "a constant with a value for each row": lambda x: x + TABLE[:, :1],
    "a sum over rows": lambda x: x.cumsum(0),
    "a softmax over rows": lambda x: x.softmax(0),
    "rows in two orders": lambda x: x + x.flip(0),
    "a product of rows": lambda x: x @ x.mT,
    "a fold that splits blocks": lambda x: x.reshape(1, -1),
}


@pytest.mark.parametrize("step", LOST)
def test_what_depends_on_a_rows_place_loses_the_owners(step: str) -> None:
    x = torch.randn(B, T, D, dtype=torch.float64)
    assert location_of_output(lambda x: LOST[step](STARTS["time first, folded"](x)), x)[1] is None


BACK: dict[str, Transform] = {
    "unfolded": lambda x: x.transpose(0, 1).flatten(0, 1).tanh().unflatten(0, (T, B)).transpose(0, 1),
    "sorted back": lambda x: x[ORDER][ORDER.argsort()],
    "padded": lambda x: pad_packed_sequence(packed(x), batch_first=True)[0],
}


@pytest.mark.parametrize("name", BACK)
def test_rows_back_in_their_order_have_an_ordinary_axis(name: str) -> None:
    assert assert_owners_are_true(BACK[name], torch.randn(B, T, D, dtype=torch.float64)) == 0


STEPS: list[Transform] = [
    *KEPT.values(),
    *LOST.values(),
    lambda x: x[ORDER] if x.shape[0] >= B else x,
    lambda x: x.index_select(-1, ORDER) if x.shape[-1] == D else x,
    lambda x: x.transpose(0, 1),
    lambda x: x.flatten(0, 1),
    lambda x: x.unflatten(0, (-1, B)),
    lambda x: x.unflatten(0, (B, -1)),
    lambda x: x.reshape(-1, x.shape[-1]),
    lambda x: x.unsqueeze(0),
    lambda x: x[0],
    lambda x: x[1:],
    lambda x: torch.cat([x, x]),
    lambda x: torch.cat([x[:2], x[2:]]),
    lambda x: torch.cat([x[1:], x[:1]]),
    lambda x: torch.stack([x[i] for i in range(len(x))]),
    lambda x: torch.stack(x.unbind(1), 1) if x.ndim > 1 else x,
    lambda x: torch.cat([x.sin(), x], -1),
    lambda x: torch.stack([x, x.cos()], 1),
    lambda x: x.chunk(2)[0],
    lambda x: x[::2],
    lambda x: x.repeat_interleave(2, 0),
    lambda x: x.sum(-1, keepdim=True),
    lambda x: x.mean(0),
    lambda x: x.flip(0),
    lambda x: x.expand(2, *x.shape),
]


@settings(max_examples=300, deadline=None)
@given(
    start=st.sampled_from(sorted(STARTS)),
    steps=st.lists(st.sampled_from(range(len(STEPS))), min_size=0, max_size=5),
)
def test_what_a_row_holds_was_computed_from_its_owner_alone(start: str, steps: list[int]) -> None:
    """Guarantee: what a row holds was computed from its owner alone, by operations that do not depend on its place."""

    def chain(x: Tensor) -> Tensor:
        value = STARTS[start](x)
        for step in steps:
            if value.ndim > 4 or value.numel() > 2048:
                break
            try:
                value = STEPS[step](value)
            except (RuntimeError, IndexError):
                continue  # the step does not fit the shape
        return value

    assert_owners_are_true(chain, torch.randn(B, T, D, dtype=torch.float64))


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.integers(0, B - 1), min_size=1, max_size=8))
def test_blocks_hold_each_examples_rows_in_their_order(rows: list[int]) -> None:
    owners = torch.tensor(rows)
    values = torch.arange(1.0, len(rows) + 1).unsqueeze(1)
    blocks = SegmentIds(0, owners).blocks(values, B)
    for i in range(B):
        own = values[owners == i].flatten()
        assert blocks[i].flatten().tolist() == [*own.tolist(), *[0.0] * (blocks.shape[1] - len(own))]
    location = location_of(0, owners, B)
    assert isinstance(location, SegmentIds) == (rows != sorted(rows) or len({rows.count(i) for i in range(B)}) > 1)
