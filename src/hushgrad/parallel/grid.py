"""Which processes have other examples, and which other parts of the model.

Processes are numbered in two ways: those of a row have the same examples and other parts of a tensor parallel model;
those of a column have other examples and the same part. Without tensor parallel modules there is one column, of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn

from hushgrad.errors import UnsupportedModelError
from hushgrad.parallel.messages import exchanged, unreachable
from hushgrad.parallel.world import ALONE, World
from hushgrad.torch_sharding import parallel_meshes


@dataclass(frozen=True, eq=False)
class Grid:
    """Where a process stands.

    Attributes:
        world: all processes.
        data: those of its column, with other examples: sums are added up over them.
        model: those of its row, with other parts of the model; each of them alone without tensor parallel modules.
        row: the name of torch's group of its row; "" without tensor parallel modules.
    """

    world: World = ALONE
    data: World = ALONE
    model: World = ALONE
    row: str = ""

    def is_of_row(self, mesh: Any, axis: int) -> bool:
        """Return whether an axis of a mesh is that of the rows: what is cut along it is cut by tensor parallel."""
        return bool(self.row) and mesh.get_group(axis).group_name == self.row


WHOLE = Grid()
"""One process, which has all of the model."""


def grid_of(model: nn.Module, world: World) -> Grid:
    """Return where this process stands, from how the parameters lie on the processes; all of them call it.

    The model was looked at by `require_layout`.

    Raises:
        UnsupportedModelError: rows are no equal parts of all processes.
        PeerFailedError: a process is gone.
    """
    own = row_of(model)
    if world.is_alone:
        return Grid(world, world, ALONE, own.row)
    ranks = dist.get_process_group_ranks(own.model.data) if own.row else []
    everybody: list[list[int]] = [row for _, row in exchanged(world, "layout", ranks)]
    if not any(everybody):
        return Grid(world, world)
    rows = sorted({tuple(row) for row in everybody})
    is_whole = sorted(rank for row in rows for rank in row) == list(range(world.size))
    if not is_whole or len({len(row) for row in rows}) > 1:
        raise UnsupportedModelError(
            "tensor parallel modules are not split over rows of equally many processes, each process in one of them",
            where="the mesh of parallelize_module",
            cure='Take a mesh of all processes, or init_device_mesh(device, (m, n), mesh_dim_names=("dp", "tp")) and '
            'give parallelize_module mesh["tp"] in all of them',
        )
    columns = tuple(zip(*rows, strict=True))
    data = _column(world, columns, own.model.rank) if len(rows) > 1 else ALONE
    return Grid(world, data, own.model, own.row)


def row_of(model: nn.Module) -> Grid:
    """Return the row of this process, as it is read from a model that `require_layout` accepts; no message is sent."""
    mesh = next(iter(parallel_meshes(model).values()), None)
    if mesh is None:
        return WHOLE
    group = mesh.get_group()
    return Grid(model=World(dist.get_rank(group), dist.get_world_size(group), None, group), row=group.group_name)


def _column(world: World, columns: tuple[tuple[int, ...], ...], place: int) -> World:
    """Return the column of this process; all of them call it, and torch makes the groups of all columns."""
    known = _columns.get(columns)
    if known is None or known[0] is not world.data:
        try:
            groups = [dist.new_group(list(column)) if len(columns) > 1 else world.data for column in columns]
        except RuntimeError as error:
            raise unreachable(f"the groups of processes could not be made ({type(error).__name__})") from error
        known = _columns[columns] = (world.data, groups)
    column = columns[place]
    return World(column.index(world.rank), len(column), None, known[1][place])


_columns: dict[tuple[tuple[int, ...], ...], tuple[Any, list[Any]]] = {}
"""The groups of columns that were made, and the world that they were made in."""
