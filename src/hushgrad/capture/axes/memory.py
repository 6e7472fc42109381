"""Where the batch lies in tensors that share memory: `as_strided`, and writes into a view of a tensor of constants.

A worked example of each, with B = 3:

    x                                       [3, 8, 2] contiguous, axis 0: example i has the 16 values from 16·i on
    x.as_strided((3, 3, 4, 2), (16, 4, 2, 1))         chunks of 4 positions that overlap by half: axis 0, as the
                                                      largest step within an example is 2·4 + 3·2 + 1 = 15
    x.as_strided((3, 3, 4, 2), (16, 8, 2, 1))         2·8 + 3·2 + 1 = 23: reaches into the next example: no axis

    keys = x.new_empty(3, 8, 4)             constants
    late = keys[..., 2:]                    a view of constants
    keys[..., :2].copy_(x)                  the view's dimension of the batch is the base's, too: keys has it on axis 0
    late                                    shows memory of the batch now, and has it on axis 0
"""

from __future__ import annotations

import weakref
from functools import lru_cache

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from hushgrad.capture.axes.rules import Axis, OperatorCall


def as_strided(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`as_strided` of data, if what it shows of each example is the example's own, and the same part of all."""
    x = call.first
    axis = call.only(x)
    if axis is None or not out.numel() or x.shape[axis] % call.batch_size:
        return None
    offset = out.storage_offset() - x.storage_offset()
    return _axis_of_windows(tuple(x.shape), x.stride(), axis, tuple(out.shape), out.stride(), offset, call.batch_size)


@lru_cache(maxsize=1024)
def _axis_of_windows(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    axis: int,
    out_shape: tuple[int, ...],
    out_strides: tuple[int, ...],
    offset: int,
    batch_size: int,
) -> Axis:
    """Look through the same windows at memory that holds, for each value of the data, its number within its example."""
    ends = [
        sum((size - 1) * stride for size, stride in zip(sizes, steps, strict=True))
        for sizes, steps in ((shape, strides), (out_shape, out_strides))
    ]
    if offset < 0 or _overlaps(shape, strides):
        return None
    memory = torch.full((max(ends[0], offset + ends[1]) + 1,), -1)
    values = memory.as_strided(shape, strides).movedim(axis, 0)
    block = values.numel() // batch_size
    values.copy_(torch.arange(values.numel()).reshape(values.shape))
    seen = memory.as_strided(out_shape, out_strides, offset)
    examples = torch.arange(batch_size).unsqueeze(1) * block
    for dim in range(len(out_shape)):
        if out_shape[dim] % batch_size:
            continue
        numbers = seen.movedim(dim, 0).reshape(batch_size, -1) - examples
        if bool(((numbers == numbers[0]) & (numbers >= 0) & (numbers < block)).all()):
            return dim
    return None


def _overlaps(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether two places of a tensor may lie at the same memory."""
    reach = 0
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size > 1):
        if stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def axis_in_base(base: Tensor, view: Tensor, axis: Axis) -> Axis:
    """Return the dimension of a tensor that a dimension of a view of it is, all of it; None where there is none."""
    if axis is None or view.shape[axis] < 2:
        return None
    size, stride = view.shape[axis], view.stride(axis)
    found = [dim for dim in range(base.ndim) if base.shape[dim] == size and base.stride(dim) == stride]
    same = [dim for dim in range(view.ndim) if view.stride(dim) == stride and view.shape[dim] > 1]
    return found[0] if len(found) == 1 and same == [axis] else None


def axis_in_view(base: Tensor, view: Tensor, axis: int) -> Axis:
    """Return the dimension of a view that is a dimension of its base, all of it; None where there is none.

    The view is made of parts of the base's dimensions, each on a dimension of its own: slices, numbers, transpositions.
    """
    if base.element_size() != view.element_size() or base.dtype != view.dtype or _overlaps(base.shape, base.stride()):
        return None
    offset = view.storage_offset() - base.storage_offset()
    taken = {stride: size for size, stride in zip(view.shape, view.stride(), strict=True) if size > 1}
    for dim in sorted(range(base.ndim), key=base.stride, reverse=True):
        if base.shape[dim] == 1:
            continue
        start, offset = divmod(int(offset), base.stride(dim))
        size = taken.pop(base.stride(dim), 1)
        if start < 0 or start + size > base.shape[dim] or (dim == axis and size != base.shape[dim]):
            return None
    found = [dim for dim in range(view.ndim) if view.stride(dim) == base.stride(axis) and view.shape[dim] > 1]
    return found[0] if len(found) == 1 and not taken and not offset else None


class WrittenMemory:
    """Memory of constants into which a forward wrote values of the batch.

    Guarantee: a tensor that shows such memory is found by it, whenever it was made.
    """

    def __init__(self) -> None:
        self._holders: dict[int, list[tuple[StorageWeakRef, weakref.ref[Tensor]]]] = {}

    def note(self, tensor: Tensor) -> None:
        """Values of the batch were written into the memory of a tensor."""
        if tensor.layout == torch.strided and tensor.numel():
            storage = tensor.untyped_storage()
            found = self._holders.setdefault(storage.data_ptr(), [])
            if not any(holder() is tensor for _, holder in found):
                found.append((StorageWeakRef(storage), weakref.ref(tensor)))  # type: ignore[no-untyped-call]

    def holders(self, tensor: Tensor) -> list[Tensor | None]:
        """Return the tensors through which the memory of another was written, None for one that is gone."""
        if tensor.layout != torch.strided or not tensor.numel():
            return []
        found = self._holders.get(tensor.untyped_storage().data_ptr(), [])
        return [holder() for storage, holder in found if not storage.expired()]  # type: ignore[no-untyped-call]

    def clear(self) -> None:
        """Forget all."""
        self._holders.clear()

    def __bool__(self) -> bool:
        """Whether there was such a write."""
        return bool(self._holders)
