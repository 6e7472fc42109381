"""A batch to probe on, made of one that has records of NaN or Inf: where nothing is finite, nothing can differ.

A record whose values are not finite contributes 0 and must stop nothing. Nor may it hide anything: one NaN in a batch
whose examples meet makes all of their values NaN, in whatever way the others are altered. So examples that are not
finite are replaced by others of the batch, and the model is asked on those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hushgrad.guards.probing.rows import VALUES, Batch
from hushgrad.guards.probing.trees import Path, tensors_at, with_tensors


def count_nan(outputs: Any) -> int:
    """Return how many NaN there are among nested tensors."""
    return sum(int(tensor.detach().isnan().sum()) for _, tensor in tensors_at(outputs) if _is_inexact(tensor))


def spoiled_rows(outputs: Any, size: int) -> list[int] | None:
    """Return the examples with a NaN among the outputs; None where there is none at all.

    A value of the whole batch (its loss) that is NaN or Inf spoils no single one: the list is then empty. Inf in the
    row of an example is no harm, since it equals itself; masked logits have it on purpose.
    """
    found: set[int] = set()
    is_spoiled = False
    for _, tensor in tensors_at(outputs):
        if not _is_inexact(tensor) or not tensor.numel():
            continue
        axis = next((axis for axis in range(min(tensor.ndim, 2)) if tensor.shape[axis] % size == 0), None)
        if axis is None:
            is_spoiled |= not bool(tensor.isfinite().all())
        else:
            found.update(_rows_of_nan(tensor.detach().movedim(axis, 0), size))
    return sorted(found) if found or is_spoiled else None


def _rows_of_nan(front: Tensor, size: int) -> list[int]:
    rows = front.reshape(size, -1)
    together = max(1, VALUES // rows.shape[1])
    spoiled = torch.cat([part.isnan().any(1) for part in rows.split(together)])  # type: ignore[no-untyped-call]
    return [int(row) for row in spoiled.nonzero()]


def repairs(batch: Batch, spoiled: Sequence[int]) -> Iterator[Batch]:
    """Yield batches to run instead, the nearest to the given one first.

    At first the spoiled examples are replaced by the others. If there are none (they spoil each other), it is examples
    with values that are not finite, or the larger half, that are. Then such values are drawn anew, and at last all are.
    """
    good = [row for row in range(batch.size) if row not in spoiled]
    if spoiled and good:
        yield _with_only(batch, good)
    sizes = _sizes(batch)
    finite = [row for row in sorted(range(batch.size), key=sizes.__getitem__) if sizes[row] < float("inf")]
    if finite:
        half = finite if len(finite) < batch.size else finite[: (batch.size + 1) // 2]
        yield _with_only(batch, sorted(half))
    yield _drawn_anew(batch, everything=False)
    yield _drawn_anew(batch, everything=True)


def _with_only(batch: Batch, good: Sequence[int]) -> Batch:
    """Put the content of some examples in the place of all others; the ids of a single one in another order."""

    def change(path: Path, tensor: Tensor) -> Tensor:
        copied = tensor.detach().clone(memory_format=torch.contiguous_format)
        if path in batch.axes:
            axis = batch.axes[path]
            others = [row for row in range(batch.size) if row not in good]
            for place, row in enumerate(others):
                donor = tensor.detach().select(axis, good[place % len(good)])
                is_alike = len(good) == 1 and donor.ndim and not donor.is_floating_point()
                copied.select(axis, row).copy_(donor.flip(-1) if is_alike else donor)
        return copied

    return replace(batch, value=with_tensors(batch.value, change))


def _drawn_anew(batch: Batch, *, everything: bool) -> Batch:
    """Replace every value that is not finite, or `everything`, by one between 0 and 1, the same in every run."""
    generator = torch.Generator().manual_seed(3)

    def change(path: Path, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if path not in batch.axes or not _is_inexact(tensor):
            return tensor.clone()
        drawn = torch.empty(tensor.shape, dtype=torch.float32).uniform_(0.1, 0.9, generator=generator)
        drawn = drawn.to(tensor.device, tensor.dtype)
        return drawn if everything else torch.where(tensor.isfinite(), tensor, drawn)

    return replace(batch, value=with_tensors(batch.value, change))


def _sizes(batch: Batch) -> list[float]:
    """Return the largest absolute value of each example, Inf where one is not finite."""
    sizes_B = torch.zeros(batch.size, dtype=torch.float64)
    for path, tensor in tensors_at(batch.value):
        if path in batch.axes and _is_inexact(tensor) and tensor.numel():
            rows = tensor.detach().movedim(batch.axes[path], 0).reshape(batch.size, -1)
            sizes_B = torch.maximum(sizes_B, rows.abs().nan_to_num(torch.inf, torch.inf).amax(1).double().cpu())
    return sizes_B.tolist()


def _is_inexact(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
