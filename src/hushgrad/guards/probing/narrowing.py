"""Inputs of a model at another width: one record's cut to its own, and those that the loop cut as they were before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hushgrad.guards.probing.contents import contents
from hushgrad.guards.probing.rows import Batch
from hushgrad.guards.probing.trees import DESCEND, Path, tensors_at, with_parts, with_tensors
from hushgrad.guards.probing.widths import Drawn, OwnWidth


def narrowed(batch: Batch, width: OwnWidth) -> Iterator[tuple[Any, bool]]:
    """Yield the inputs of one record at its own width, and whether padding was on the left; likelier ways first.

    Nothing is yielded where what would be cut off is no padding. Where nothing is padded, as in lists and in rows that
    lie end to end, the record runs as it is.
    """
    if not any(
        places_of(part, width, batch.axes[path]) for path, part in tensors_at(batch.value) if path in batch.axes
    ):
        yield batch.only([width.row]), False
        return
    sides = [left for left in (False, True) if _cuts_padding(batch, width, left)]
    own = [left for left in sides if _keeps_own(batch, width, left)]
    for left in own or sides:
        single = batch.only([width.row])

        def cut(path: Path, tensor: Tensor, left: bool = left) -> Tensor:
            return cut_to(tensor, width, batch.axes.get(path), left)

        inputs = with_tensors(single, cut)
        yield inputs, left
        yield with_parts(inputs, lambda path, part: _own_number(path, part, width)), left


def shortened(batch: Batch, width: OwnWidth) -> set[int]:
    """Return the lengths of inputs that are one position shorter than in the item: shifted by the loop, or cut."""
    return {
        tensor.shape[place]
        for path, tensor in tensors_at(batch.value)
        if path in batch.axes
        for place in places_of(tensor, width, batch.axes[path])
        if tensor.shape[place] not in width.lengths
    }


def widened(drawn: Drawn, batch: Batch) -> tuple[Batch, int, int] | None:
    """Return the inputs as they were before the loop cut them to the longest record, the length cut to, and the former.

    None where they were not cut, or where what was cut off is more than padding.
    """
    count = min(len(drawn.indices), batch.size)
    items = [tensor for _, tensor in tensors_at(drawn.item) if tensor.ndim > 1 and tensor.shape[0] == batch.size]
    found: tuple[int, int] | None = None
    whole: dict[Path, Tensor] = {}
    for path, tensor in tensors_at(batch.value):
        if batch.axes.get(path) != 0 or tensor.ndim < 2:
            continue
        length = tensor.shape[1]
        for item in items:
            if item.ndim != tensor.ndim or item.shape[1] <= length or item.shape[2:] != tensor.shape[2:]:
                continue
            own = item.to(tensor.device, tensor.dtype)
            is_prefix = torch.equal(own[:count, :length], tensor.detach()[:count])
            # A record may end in equal positions; padding is the same in all.
            if (
                is_prefix
                and int(contents(item[:count]).max()) == length
                and _is_constant(own[:, length:].flatten(0, 1))
            ):
                whole[path], found = own, (length, item.shape[1])
    if found is None:
        return None
    for path, tensor in tensors_at(batch.value):
        if path not in whole and path in batch.axes and found[0] in tensor.shape[1:]:
            return None
    wide = with_tensors(batch.value, lambda path, tensor: whole.get(path, tensor))
    return replace(batch, value=wide), *found


def cut_to(tensor: Tensor, width: OwnWidth, batch_axis: int | None, left: bool) -> Tensor:
    """Return a tensor cut to a record's own width along all axes but that of the batch."""
    for axis in places_of(tensor, width, batch_axis):
        length = tensor.shape[axis]
        own = width.of(length)
        tensor = tensor.narrow(axis, length - own if left else 0, own)
    return tensor.contiguous()


def places_of(tensor: Tensor, width: OwnWidth, batch_axis: int | None) -> list[int]:
    """Return the axes of positions that a record has fewer of: one, but for masks over pairs and for images.

    An axis of features may be as long by chance. One that the loop shifted is sought among whole numbers only.
    """
    others = [axis for axis in range(tensor.ndim) if axis != batch_axis]
    exact = [axis for axis in others if width.lengths.get(tensor.shape[axis], tensor.shape[axis]) < tensor.shape[axis]]
    if exact:
        return exact if tensor.ndim > 3 or not tensor.is_floating_point() else exact[:1]
    is_shifted = (
        others and not tensor.is_floating_point() and width.of(tensor.shape[others[0]]) < tensor.shape[others[0]]
    )
    return others[:1] if is_shifted else []


def cut_like(tensor: Tensor, own: Tensor, left: bool) -> Tensor:
    """Return a tensor cut to the shape that another one has, where it is longer."""
    if tensor.ndim != own.ndim:
        return tensor
    for axis, length in enumerate(own.shape):
        if length < tensor.shape[axis]:
            tensor = tensor.narrow(axis, tensor.shape[axis] - length if left else 0, length)
    return tensor


def _own_number(path: Path, part: Any, width: OwnWidth) -> Any:
    if type(part) is int and part > 1 and part in width.lengths:
        return width.lengths[part]
    return part if isinstance(part, Tensor) else DESCEND


def _keeps_own(batch: Batch, width: OwnWidth, left: bool) -> bool:
    """Whether some of what is left is what the record makes alone, or that shifted: then padding is on this side."""
    for path, tensor in tensors_at(batch.value):
        axis = batch.axes.get(path)
        if axis is None or len(places := places_of(tensor, width, axis)) != 1:
            continue
        length, own = tensor.shape[places[0]], width.of(tensor.shape[places[0]])
        row = tensor.detach().movedim((axis, places[0]), (0, 1))[width.row]
        if width.is_alone(row[length - own :] if left else row[:own], shifts=length not in width.lengths):
            return True
    return False


def _cuts_padding(batch: Batch, width: OwnWidth, left: bool) -> bool:
    """Whether something would be cut off, and all of that is padding in this record, or the same for all records."""
    cut = False
    for path, tensor in tensors_at(batch.value):
        axis = batch.axes.get(path)
        if axis is None:
            continue
        places = places_of(tensor, width, axis)
        if not places:
            continue
        cut = True
        if len(places) > 1:
            continue  # a mask over pairs of positions
        length = tensor.shape[places[0]]
        own = width.of(length)
        front = tensor.detach().movedim((axis, places[0]), (0, 1))
        # The loop's own shift ([:, :-1]) leaves a record one of its own positions more beside a longer one.
        shifted = width.shift * int(not left and length not in width.lengths)
        beyond = front[:, : length - own] if left else front[:, min(own + shifted, length - 1) :]
        kept = front[width.row, length - own :] if left else front[width.row, :own]
        if not (_is_constant(beyond[width.row]) or bool((beyond == beyond[:1]).all()) or width.is_alone(kept)):
            return False
    return cut


def _is_constant(positions: Tensor) -> bool:
    """Whether all positions, on axis 0, hold the same; NaN is the same as NaN."""
    return bool(((positions == positions[:1]) | (positions != positions)).all())
