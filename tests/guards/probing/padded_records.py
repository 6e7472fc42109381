"""Four records of several lengths, collated in several ways, for tests of widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hushgrad.guards.probing.rows import Batch
from hushgrad.guards.probing.widths import Drawn

RECORDS = [[5, 6, 7], [8], [1, 2, 3, 4, 9], [2, 2]]
"""Ids of four records; 0 is padding."""

B, T = len(RECORDS), 5


def padded(records: Sequence[Sequence[int]], *, left: bool = False, width: int | None = None) -> Tensor:
    width = width or max(map(len, records))
    zeros = [[0] * (width - len(record)) for record in records]
    return torch.tensor([z + list(r) if left else [*r, *z] for z, r in zip(zeros, records, strict=True)])


def pad_right(records: list[Any]) -> Tensor:
    return padded(records)


def pad_left(records: list[Any]) -> Tensor:
    return padded(records, left=True)


def with_mask(records: list[Any]) -> tuple[Tensor, Tensor]:
    ids = padded(records)
    return ids, (ids != 0).long()


def time_first(records: list[Any]) -> Tensor:
    return padded(records).T.contiguous()


def drawn(collate: Any = pad_right, **options: Any) -> Drawn:
    item = collate(RECORDS) if collate is not None else options.pop("item")
    return Drawn(RECORDS, range(B), item, B, collate, **options)


def batch(value: Any, axis: int = 0, size: int = B) -> Batch:
    """Inputs of a model in which every tensor holds the batch on this axis."""
    parts = value if isinstance(value, tuple) else (value,)
    return Batch(parts, {(n,): axis for n, _ in enumerate(parts)}, size)
