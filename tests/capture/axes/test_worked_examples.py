"""What the worked examples in the docstrings of `batch_axes.py` and `segment_ids.py` say is what happens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hushgrad.capture.axes.batch_axes import BatchAxes
from hushgrad.capture.axes.owners import SegmentIds
from hushgrad.capture.mode import CaptureMode
from hushgrad.capture.operators.operator import ForwardContext, GraphAnchor
from hushgrad.capture.uses import UsePool


def locations(x: Tensor, *steps: Callable[[Tensor], Tensor]) -> list[int | list[int] | None]:
    """Return where the batch is said to lie after each step: an axis, owners of rows, or None."""
    axes, found = BatchAxes(), []
    axes.seed((x,), x.shape[0])
    with CaptureMode(ForwardContext(UsePool(), GraphAnchor(), axes, {}, x.shape[0], []), lambda: True):
        for step in steps:
            x = step(x)
            location = axes.location(x)
            found.append(location.rows.tolist() if isinstance(location, SegmentIds) else location)
    return found


def test_the_axis_of_the_batch_goes_through_attention_as_the_example_says() -> None:
    w, b = torch.randn(8, 24), torch.randn(24)
    assert locations(
        torch.randn(2, 3, 8),
        lambda h: h.view(-1, 8),
        lambda h: torch.addmm(b, h, w),
        lambda h: h.view(2, 3, 24),
        lambda h: h.split(8, 2)[0],
        lambda h: h.view(2, 3, 4, 2).transpose(1, 2),
        lambda h: h.permute(2, 0, 1, 3),
        lambda h: h.reshape(6, 8),
        lambda h: h - h.mean(0),
    ) == [0, 0, 0, 0, 0, 1, [0, 1, 0, 1, 0, 1], None]


def test_the_owners_of_packed_rows_are_as_the_example_says() -> None:
    w, lengths = torch.randn(4, 4), torch.tensor([2, 3])
    packed = []

    def pack(x: Tensor) -> Tensor:
        packed.append(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return packed[0].data

    assert locations(
        torch.randn(2, 3, 4),
        pack,
        lambda h: torch.nn.functional.linear(h, w),
        lambda h: pad_packed_sequence(packed[0]._replace(data=h), batch_first=True)[0],
    ) == [[1, 0, 1, 0, 1], [1, 0, 1, 0, 1], 0]


def test_rows_are_gathered_by_their_owners_and_padded_with_zeros() -> None:
    rows = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    blocks = SegmentIds(0, torch.tensor([1, 0, 1, 0, 1])).blocks(rows, 2)
    assert blocks.squeeze(2).tolist() == [[2, 4, 0], [1, 3, 5]]
