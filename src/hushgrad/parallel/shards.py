"""How parameters lie on the processes, and how sums of single processes become each process's part of their sum.

A sum is split as its parameter is. Every process adds noise to the part of its own sum that it will have, and then the
processes exchange: each gets from all others what they have of its part. Where several processes have one part (the
copies of a mesh of two dimensions), each of them adds noise to its own slice of it. So every value has noise from one
draw, by one process, as in `reduction`, and sums are added up in their own dtype, whatever FSDP would reduce gradients
in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hushgrad.parallel.grid import Grid
from hushgrad.parallel.messages import unreachable
from hushgrad.parallel.reduction import Reduction, own_slice
from hushgrad.parallel.world import ALONE, World
from hushgrad.torch_sharding import cut, is_distributed, like, local_part, whole


@dataclass(frozen=True)
class Shards:
    """How a parameter is split: equal for parameters that may be exchanged together.

    Attributes:
        dim: the dimension that is split.
        place: which of the parts this process has.
        count: how many there are.
        copies: the processes that have the same part; one process is a world, too.
        group: the processes that have the parts.
    """

    dim: int
    place: int
    count: int
    copies: World = field(default=ALONE, compare=False)
    group: Any = field(default=None, compare=False)
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, parameter: Any, grid: Grid) -> Shards | None:
        """Return how a parameter is split over a column, that `require_layout` accepts; None where it is not.

        How tensor parallel modules split it over rows is left out: each column has a part of its own, and its sums.
        """
        if not is_distributed(parameter):
            return None
        mesh, placements = parameter.device_mesh, parameter.placements
        axes = [axis for axis in range(mesh.ndim) if not grid.is_of_row(mesh, axis)]
        if not axes:
            return None
        names = tuple(mesh.get_group(axis).group_name for axis in axes)
        axis = next(axis for axis in axes if not placements[axis].is_replicate())
        copies = ALONE
        for other in axes:
            if placements[other].is_replicate():
                copies = World(mesh.get_local_rank(other), mesh.size(other), None, mesh.get_group(other))
        return cls(
            placements[axis].dim, mesh.get_local_rank(axis), mesh.size(axis), copies, mesh.get_group(axis), names
        )

    def rows_of(self, totals: Sequence[Tensor]) -> Tensor:
        """Return `[count, L]`: of each part of all totals the values one after another, padded with zeros."""
        parts = [torch.chunk(total, self.count, self.dim) for total in totals]
        sizes = [chunks[0].numel() for chunks in parts]
        rows = totals[0].new_zeros(self.count, sum(sizes))
        start = 0
        for chunks, size in zip(parts, sizes, strict=True):
            for row, chunk in zip(rows, chunks, strict=False):  # the last processes may have nothing of a small one
                row[start : start + chunk.numel()].view(chunk.shape).copy_(chunk)
            start += size
        return rows

    def own_part(self, rows: Tensor) -> Tensor:
        """Return what this process adds noise to: a view.

        Guarantee: the parts of all processes are disjoint, and together they are the whole.
        """
        return own_slice(self.copies, rows[self.place])

    def taken_apart(self, own: Tensor, totals: Sequence[Tensor]) -> list[Tensor]:
        """Return this process's part of each total, in its shape, from the values one after another."""
        found, start = [], 0
        for total in totals:
            chunks = torch.chunk(total, self.count, self.dim)
            shape = list(total.shape)
            shape[self.dim] = chunks[self.place].shape[self.dim] if self.place < len(chunks) else 0
            found.append(own[start : start + math.prod(shape)].view(shape))
            start += chunks[0].numel()
        return found


def split_as(parameter: Any, value: Any) -> Any:
    """Return a whole tensor as a parameter lies on the processes; what is no such parameter's as it is."""
    if not isinstance(parameter, Tensor) or not is_distributed(parameter):
        return value
    return like(parameter, cut(parameter, value).to(local_part(parameter).device).clone())


def put_together(world: World, state: Any) -> Any:
    """Return a state with whole tensors, on the CPU; in other processes than the first one with none. All call it.

    Raises `PeerFailedError` where a process is gone.
    """
    if isinstance(state, Tensor):
        if not is_distributed(state):
            return state
        try:
            found = whole(state.detach())
        except RuntimeError as error:
            raise unreachable(f"a sharded tensor could not be put together ({type(error).__name__})") from error
        return found.cpu() if world.is_first else None
    if isinstance(state, dict):
        return {name: put_together(world, part) for name, part in state.items()}
    if type(state) in (list, tuple):
        return type(state)(put_together(world, part) for part in state)
    return state


class Scattering:
    """One process's rows for `own`, `[L]`: the sum of its own row over the processes that have the parts."""

    def __init__(self, split: Shards, rows: Tensor) -> None:
        """Begin to hand the rows over."""
        self.own = rows[split.place]
        self._work: Any = None
        if split.count > 1:
            self.own = torch.empty_like(self.own)
            self._rows = rows  # until it is sent
            self._work = _reduce_scatter(self.own, rows.view(-1), group=split.group, async_op=True)

    def wait(self) -> None:
        """Return when it has come from all others."""
        if self._work is not None:
            self._work.wait()
            del self._rows


class Exchange:
    """The exchange of one process's rows for `own`, `[L]`: the sum over all processes of the row that is its own."""

    def __init__(self, split: Shards, rows: Tensor) -> None:
        self._split, self.values = split, rows
        self.part, self.own = split.own_part(rows), rows[split.place]
        self._scattering: Scattering | None = None

    def send(self) -> None:
        """Begin to hand them over."""
        self._scattering = Scattering(self._split, self.values)

    def wait(self) -> None:
        """Return when it has come from all others."""
        assert self._scattering is not None
        self._scattering.wait()
        rest = Reduction(self._split.copies, self._scattering.own)
        rest.send()
        rest.wait()
        self.values = self.part = self.own = rest.own  # the rows can go


_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
