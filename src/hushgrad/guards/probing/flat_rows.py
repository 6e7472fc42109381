"""Rows of an item that lie end to end, in a loop's program: altered, left out and compared by their owners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hushgrad.capture.axes.layout import Layout, Path, Role, owners_of


@dataclass(eq=False)
class FlatRows:
    """The parts of an item, by their slots.

    Attributes:
        roles: what each holds.
        owners: the owner of each row in tensors of so many rows.
    """

    roles: dict[int, Role] = field(default_factory=dict)
    owners: dict[int, Tensor] = field(default_factory=dict)

    def add(self, slot: int, layout: Layout, path: Path, tensor: Tensor) -> None:
        """Take note of a part of the item."""
        self.roles[slot] = layout.roles[path]
        counts = layout.counts_at(path, tensor)
        if counts is not None:
            self.owners[sum(counts)] = owners_of(counts, tensor.device)

    def of_rows(self, values: Tensor) -> Tensor | None:
        """Return the owner of each row of a tensor that has as many rows as a part of the item."""
        return self.owners.get(values.shape[0]) if values.ndim else None

    def altered(self, slot: int, values: Tensor, chosen: Sequence[int], beyond: float | None, factor: float) -> Tensor:
        """Return the values with the rows of some examples exchanged for others; what says where they begin stays."""
        owners = self.of_rows(values)
        if self.roles[slot] is not Role.FLAT or owners is None:
            return values
        is_chosen = torch.isin(owners, torch.tensor(chosen, device=owners.device))
        other = values.roll(1, 0)[is_chosen]
        changed = values.clone()
        changed[is_chosen] = other if beyond is None else other * factor + beyond
        return changed

    def first(self, slot: int, values: Tensor, count: int) -> Tensor:
        """Return the values of the first examples alone."""
        role = self.roles[slot]
        if role in (Role.STARTS, Role.BOUNDS):
            return values[: count + (role is Role.BOUNDS)]
        rows = values.T if role is Role.LINKS else values
        owners = self.of_rows(rows)
        if owners is None:
            return values
        left = rows[owners < count]
        return left.T if role is Role.LINKS else left
