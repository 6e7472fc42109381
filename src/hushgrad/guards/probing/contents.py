"""How much each row of a batch holds before its padding, told by the row itself or by all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hushgrad.guards.probing.rows import Batch
from hushgrad.guards.probing.trees import tensors_at


def contents(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return for each row of `[B, T, ...]` how many positions come before the padding, at least 1.

    Padding is what repeats the last position; where nothing does, there is none.
    """
    with torch.no_grad():
        flat = tensor.detach().reshape(*tensor.shape[:2], -1)
        same = ((flat == flat[:, -1:]) | (flat != flat)).all(2)
        run = same.flip(1).long().cumprod(1).sum(1)
        own = torch.where(run > 1, tensor.shape[1] - run, tensor.shape[1])
        found: np.ndarray[Any, Any] = own.clamp(min=1).cpu().numpy()
        return found


def content_before_padding(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return for each row of `[B, T, ...]` how many positions come before what can be nothing but padding.

    A record may itself end in two equal positions, and a mask of a record that is as long as the longest holds ones
    alone. So padding is a value that no record begins with, and, of more than two records, that two end in, several
    times (in a mask once).
    """
    ends = tensor.detach()[:, -1].reshape(len(tensor), -1)
    begins = tensor.detach()[:, 0].reshape(len(tensor), -1)
    own = contents(tensor)
    same = (ends[:, None] == ends) | ((ends != ends)[:, None] & (ends != ends))
    rows = torch.from_numpy(own < tensor.shape[1]).to(ends.device)
    is_mask = torch.unique(tensor).numel() <= 2  # one position of padding shows there
    alike = (same.all(2) & (rows | is_mask)).sum(1)
    begun = (ends[:, None] == begins).all(2).any(1)
    is_padded = rows & ~begun & (alike >= min(2, len(tensor) - 1))
    return np.where(is_padded.cpu().numpy(), own, tensor.shape[1])


def longest_contents(tensors: Sequence[Tensor], count: int) -> np.ndarray[Any, Any]:
    """Return for each of `count` rows the longest content among those of `[B, T, ...]`, 0 where there is none."""
    lengths = np.zeros(count)
    for tensor in tensors:
        if tensor.ndim > 1 and tensor.numel():
            lengths = np.maximum(lengths, contents(tensor))
    return lengths


def extremes(batch: Batch) -> list[int]:
    """Return the example with the longest and that with the shortest content, by what is of whole numbers."""
    held = [tensor for path, tensor in tensors_at(batch.value) if batch.axes.get(path) == 0 and tensor.ndim == 2]
    lengths = longest_contents([tensor for tensor in held if not tensor.is_floating_point()], batch.size)
    return [int(lengths.argmax()), int(lengths.argmin())] if lengths.min() < lengths.max() else []
