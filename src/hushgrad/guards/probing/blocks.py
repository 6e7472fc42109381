"""Rows that lie end to end, as `[B, T, ...]` for as long as a batch is altered, and back again.

A graph's nodes, its edges and what says where each graph begins belong together: an example is exchanged or left out in
all of them at once, and they are put together anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.capture.axes.layout import MARKS, Layout, Path, Role


@dataclass(frozen=True, eq=False)
class Blocks:
    """One tensor of a batch whose rows lie end to end.

    Attributes:
        role: what it holds.
        counts: `[B]`, how many rows each example has in it, or in the tensor that it says the division of.
        padded: `[B, most, ...]`, the rows, zeros beyond; of pairs, counted from the example's own first row.
        targets: `[B]`, for pairs: how many rows each example has among those that they are pairs of.
        dtype, device: those of the tensor.
    """

    role: Role
    counts: Tensor
    padded: Tensor | None
    targets: Tensor | None
    dtype: torch.dtype
    device: torch.device

    def joined(self) -> Tensor:
        """Return the tensor with the rows of one example behind those of another."""
        if self.padded is None:
            ends = self.counts.cumsum(0)
            if self.role is Role.OWNERS:
                found = torch.arange(len(self.counts)).repeat_interleave(self.counts)
            else:
                found = torch.cat([ends.new_zeros(1), ends if self.role is Role.BOUNDS else ends[:-1]])
            return found.to(self.device, self.dtype)
        counts = self.counts.clamp(0, self.padded.shape[1]).tolist()
        rows = [row[:count] for row, count in zip(self.padded, counts, strict=True)]
        if self.targets is None:
            return torch.cat(rows)
        starts = (self.targets.cumsum(0) - self.targets).tolist()
        return torch.cat([row + start for row, start in zip(rows, starts, strict=True)]).T.contiguous()


def blocks_of(layout: Layout, path: Path, tensor: Tensor) -> Blocks | None:
    """Return a tensor of a batch as blocks; None where its rows do not lie end to end."""
    role = layout.roles.get(path)
    if role in MARKS:
        division = torch.tensor(layout.division(role, tensor))
        return Blocks(role, division, None, None, tensor.dtype, tensor.device)
    counts = layout.counts_at(path, tensor)
    if counts is None or role is None:
        return None
    rows, targets = tensor.detach(), None
    if role is Role.LINKS:
        nodes = layout.rows_of_links(tensor)
        targets = torch.tensor(nodes)
        starts = (targets.cumsum(0) - targets).repeat_interleave(torch.tensor(counts)).to(tensor.device)
        rows = (rows - starts).T
    padded = rows.new_zeros(len(counts), max(*counts, 1), *rows.shape[1:])
    for row, part in zip(padded, torch.split(rows, counts), strict=True):
        row[: len(part)] = part
    return Blocks(role, torch.tensor(counts), padded, targets, tensor.dtype, tensor.device)
