"""Windows on memory, and buffers that are written through views: the batch is found where it is, or lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from tracking import B, Transform, assert_axis_is_true, tracked_axis

from hushgrad.capture.axes.memory import WrittenMemory, axis_in_view
from hushgrad.errors import PrivacyUnitError


def written(out: Tensor, view: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    view(out).copy_(value)
    return out


def in_two_parts(x: Tensor) -> Tensor:
    first = written(torch.zeros(B, B, B), lambda out: out[..., :1], x[..., 1:2])
    return written(first, lambda out: out[..., 1:], x[..., 1:])


def behind(make: Callable[[Tensor], Tensor], write: Callable[[Tensor, Tensor], object]) -> Transform:
    """A view of a buffer [B, 2, B] of zeros that was made before the batch was written into the buffer."""

    def transform(x: Tensor) -> Tensor:
        buffer = torch.zeros(B, 2, B)
        view = make(buffer)
        write(buffer, x)
        return view * 1.0

    return transform


def copied(buffer: Tensor, x: Tensor) -> object:
    return buffer.copy_(x[:, :2])


def assigned(buffer: Tensor, x: Tensor) -> object:
    buffer[:, 1] = x[:, 0]
    return buffer


def added(buffer: Tensor, x: Tensor) -> object:
    return torch.add(x[:, :2], 1.0, out=buffer)


def in_chunks(x: Tensor) -> Tensor:
    buffer = torch.zeros(B, B, 2 * B)
    for part in buffer.chunk(2, -1):
        part.copy_(x)
    return buffer


def in_steps(x: Tensor) -> Tensor:
    buffer = torch.zeros(4, B, B)
    for step, part in enumerate(buffer.unbind(0)):
        part.copy_(x[:, 0] * step)
    return buffer


# On x of shape [B, B, B], the most confusing there is: each with the axis on which the batch must be found.
KEPT: dict[str, tuple[Transform, int]] = {
    "windows": (lambda x: x.as_strided((B, 2, 2, B), (B * B, B, B, 1)), 0),
    "another order": (lambda x: x.as_strided((B, B, B), (1, B, B * B)), 2),
    "of time first": (lambda x: x.transpose(0, 1).as_strided((B, B, B), (1, B * B, B)), 1),
    "from the second place": (lambda x: x.as_strided((B, B - 1), (B * B, 1), 1), 0),
    "heads folded into the batch": (
        lambda x: x.view(B * B, 1, B).as_strided((B * B, 2, 2), (B, 1, 1)).reshape(B, B, 4),
        0,
    ),
    "written into a view": (lambda x: written(torch.zeros(B, 2, B), lambda out: out[:, 0], x[:, 1]), 0),
    "written into two views": (in_two_parts, 0),
    "written into two halves, both made before": (in_chunks, 0),
    "written into steps, all made before": (in_steps, 1),
    "a slice from before a copy": (behind(lambda buffer: buffer[..., 1:], copied), 0),
    "transposed before an assignment": (behind(lambda buffer: buffer.movedim(0, 1), assigned), 1),
    "detached before a write by out=": (behind(Tensor.detach, added), 0),
    "written into a row": (lambda x: written(torch.zeros(2, B, B), lambda out: out[1], x[:, 0]), 1),
}

LOST: dict[str, Transform] = {
    "another part of each": lambda x: x.as_strided((B, B, B - 1), (B * B - 1, B, 1)),
    "memory outside": lambda x: x[:, :1].as_strided((B, B, B), (B * B, B, 1)),
    "overlapping data": lambda x: x[0].expand(B, B, B).as_strided((B, B, B), (0, B, 1)),
    "into the next example": lambda x: x[:-1].as_strided((B - 1, B + 1, B), (B * B, B, 1)),
    "one example's place, from before a copy": behind(lambda buffer: buffer[0], copied),
    "one example's place, from before an assignment": behind(lambda buffer: buffer[-1], assigned),
    "the first places, from before a write by out=": behind(lambda buffer: buffer.detach()[:1], added),
    "a number, from before a copy": behind(lambda buffer: buffer.view(-1)[-1], copied),
    "an expanded place, from before a copy": behind(lambda buffer: buffer[:1].expand(B, 2, B), copied),
    "a diagonal": lambda x: written(torch.zeros(B, B), torch.diagonal, x[:, 0, 0]),
    "a view that hides the batch": lambda x: written(torch.zeros(B, B), lambda out: out.view(-1)[:B], x[:, 0, 0]).sum(
        1
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_the_batch_is_found_where_it_is(name: str) -> None:
    transform, expected = KEPT[name]
    assert assert_axis_is_true(transform, torch.randn(B, B, B)) == expected


@pytest.mark.parametrize("name", LOST)
def test_the_batch_is_lost_where_examples_meet(name: str) -> None:
    assert tracked_axis(LOST[name], torch.randn(B, B, B))[1] is None


def test_views_that_would_put_the_batch_on_two_axes_of_a_buffer_are_refused() -> None:
    def both(x: Tensor) -> Tensor:
        buffer = torch.zeros(B, B)
        turned = buffer.t()
        buffer[:, :1].copy_(x[:, :1])
        turned[:, 1:].copy_(x[:, 1:])
        return buffer

    with pytest.raises(PrivacyUnitError, match="in place"):
        tracked_axis(both, torch.randn(B, B))


def test_a_view_without_places_changes_nothing() -> None:
    def nothing(x: Tensor) -> Tensor:
        buffer = torch.zeros(B, B)
        buffer[:, :B].copy_(x)
        buffer.t()[:0].copy_(x[:0])
        return buffer

    assert tracked_axis(nothing, torch.randn(B, B))[1] == 0


def test_a_tensor_that_shows_written_memory_is_found_by_it_whenever_it_was_made() -> None:
    """Guarantee: a tensor that shows such memory is found by it, whenever it was made."""
    written_memory, buffer, other = WrittenMemory(), torch.zeros(4, 2), torch.zeros(4, 2)
    assert not written_memory
    before = buffer[1:]
    written_memory.note(buffer)
    assert written_memory
    assert all(written_memory.holders(part)[0] is buffer for part in (buffer, before, buffer.t(), buffer.detach()))
    assert not written_memory.holders(other)
    assert not written_memory.holders(buffer[:0])
    written_memory.clear()
    assert not written_memory
    assert not written_memory.holders(buffer)


def test_a_view_has_a_dimension_of_its_base_only_where_it_has_all_of_it() -> None:
    base = torch.zeros(3, 4, 5)
    assert axis_in_view(base, base[:, 1:3, ::1].permute(2, 0, 1), 0) == 1
    assert axis_in_view(base, base[1], 1) == 0
    for view in (base[1:], base[0], base.view(-1), base[:1].expand(3, 4, 5), base.view(torch.int32)):
        assert axis_in_view(base, view, 0) is None
    assert axis_in_view(base[:, 1:], base[:, :2], 0) is None  # begins before it
    assert axis_in_view(base[:, :2], base[:, 1:], 0) is None  # ends behind it
