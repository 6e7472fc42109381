"""A row of processes has the same examples, and each of it a part of their gradients: norms, and who has what.

Of a parameter that all processes of a row have whole, one of them is the owner: its sum alone is measured, gets noise
and is released; the others get the update from it. So what is released is what was measured, whether or not the others
have come to the same gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hushgrad.gradients.across import NOWHERE, Across
from hushgrad.gradients.contribution import accumulation_dtype
from hushgrad.parallel.grid import Grid
from hushgrad.parallel.messages import unreachable
from hushgrad.parallel.reduction import Outgoing
from hushgrad.parallel.world import World
from hushgrad.torch_sharding import device_of, is_distributed, part_of


def owners_of(parameters: Mapping[str, Any], grid: Grid) -> dict[str, int | None]:
    """Return for each parameter which process of a row has its sum; None where every process has a part of its own.

    The same in all processes. Who has the fewest values gets the next parameter.
    """
    loads = [0] * grid.model.size
    found: dict[str, int | None] = {}
    for name, parameter in parameters.items():
        if grid.model.is_alone or _is_cut(parameter, grid):
            found[name] = None
            continue
        owner = loads.index(min(loads))
        loads[owner] += parameter.numel()
        found[name] = owner
    return found


def is_from_here(owner: int | None, row: World) -> bool:
    """Return whether this process has a sum of such an owner; else it gets the update from that one."""
    return owner in (None, row.rank)


def shape_in_row(parameter: Any, grid: Grid) -> torch.Size:
    """Return the shape of the part of a parameter that a column has, split over it or not."""
    shape: torch.Size = parameter.shape
    if not is_distributed(parameter):
        return shape
    mesh = parameter.device_mesh
    for axis, placement in enumerate(parameter.placements):
        if grid.is_of_row(mesh, axis):
            shape = part_of(
                torch.empty(shape, device="meta"), placement, mesh.size(axis), mesh.get_local_rank(axis)
            ).shape
    return shape


def bytes_of_sums(parameters: Mapping[str, Any], owners: Mapping[str, int | None], grid: Grid) -> int:
    """Return how much memory the sums of parameters take in this process, which it has of all that are from here."""
    return sum(
        shape_in_row(parameter, grid).numel() * accumulation_dtype(parameter.dtype).itemsize
        for name, parameter in parameters.items()
        if is_from_here(owners[name], grid.model)
    )


def across_row(grid: Grid, owners: Mapping[str, int | None], parameters: Mapping[str, Tensor]) -> Across:
    """Return whom this process tells of its examples' gradients."""
    if grid.model.is_alone:
        return NOWHERE
    some = next(parameter for parameter in parameters.values())
    device = device_of(some) if is_distributed(some) else some.device
    return RowOfProcesses(grid.model, owners, device)


def _is_cut(parameter: Any, grid: Grid) -> bool:
    """Whether each process of a row has another part of a parameter."""
    if not is_distributed(parameter):
        return False
    mesh, placements = parameter.device_mesh, parameter.placements
    return any(grid.is_of_row(mesh, axis) and not placements[axis].is_replicate() for axis in range(mesh.ndim))


class RowOfProcesses:
    """What the processes of a row tell each other of their examples' gradients: `Across` of `gradients`.

    Guarantee: each part of an example's gradient is counted once, and every process gets the same bits.
    """

    def __init__(self, row: World, owners: Mapping[str, int | None], device: torch.device) -> None:
        """`device` is that of the messages: where the model is computed."""
        self._row, self._owners, self._device = row, owners, device

    def has(self, name: str) -> bool:
        """Return whether this process's part of a parameter's sum counts."""
        return is_from_here(self._owners[name], self._row)

    def added(self, squares: Tensor) -> Tensor:
        """Return squared norms, added up over the row in float64 and in the order of its processes.

        Raises `PeerFailedError` where one is gone.
        """
        own = squares.to(self._device, torch.float64).contiguous()
        return torch.stack(self._told(own)).sum(0).to(squares)

    def least(self, number: int) -> int:
        """Return the least of the numbers that the processes give; raises as `added` does."""
        return min(int(told) for told in self._told(torch.tensor([number], device=self._device)))

    def agree_on(self, number: int) -> bool:
        """Return whether all processes give this number, at most 2**56; raises as `added` does."""
        return len({int(told) for told in self._told(torch.tensor([number], device=self._device))}) == 1

    def _told(self, own: Tensor) -> list[Tensor]:
        rows = [torch.empty_like(own) for _ in range(self._row.size)]
        try:
            dist.all_gather(rows, own, group=self._row.data)
        except RuntimeError as error:
            raise unreachable(f"norms could not be added up ({type(error).__name__})") from error
        return rows


class FromOwner:
    """A sum that one process of a row has, and all of the row have once it has come: of split ones their part."""

    def __init__(self, row: World, owner: int, total: Outgoing) -> None:
        """`total` is the owner's; in all others memory for what comes."""
        self._row, self._owner, self._total = row, owner, total
        self.values, self.own = total.values, total.own
        self.part = total.part if is_from_here(owner, row) else total.part[:0]

    def send(self) -> None:
        """Begin to hand it over."""
        self._total.send()

    def wait(self) -> None:
        """Return when it has come. All processes of the row wait for their sums of owners in the same order."""
        self._total.wait()
        self.values = self.part = self.own = self._total.own
        dist.broadcast(self.own, group_src=self._owner, group=self._row.data)


def from_owner(row: World, owner: int | None, total: Outgoing) -> Outgoing:
    """Return a sum that all of a row get from its owner; as it is where every process has one of its own."""
    return total if owner is None else FromOwner(row, owner, total)
