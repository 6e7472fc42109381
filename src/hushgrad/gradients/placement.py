"""Of a contribution to a parameter that lies on several processes, the part that this process has of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hushgrad.gradients.contribution import Contribution
from hushgrad.torch_sharding import arrived, cut_along, is_distributed, laid_out, whole_on


class Put:
    """Lays operands out as a parameter lies on the processes of a row.

    Args:
        parameter: a distributed tensor.
    """

    def __init__(self, parameter: Any) -> None:
        self._mesh, self._placements = parameter.device_mesh, parameter.placements

    @property
    def cuts(self) -> bool:
        """Whether each process has another part of the parameter."""
        return not all(placement.is_replicate() for placement in self._placements)

    def __call__(self, operand: Tensor, dims: Mapping[int, int]) -> Tensor:
        """Return the part of an operand that the parameter's part here is made of.

        `dims` says which dimension of the operand runs along which one of the parameter.
        """
        wanted = whole_on(self._mesh)
        for axis, placement in enumerate(self._placements):
            if not placement.is_replicate() and placement.dim in dims:
                wanted[axis] = cut_along(dims[placement.dim])
        return laid_out(operand, self._mesh, wanted)

    def rows(self, count: int) -> tuple[int, int]:
        """Return the first of so many rows of the parameter that is here, and how many are."""
        first, here = 0, count
        for axis, placement in enumerate(self._placements):
            if not placement.is_replicate() and placement.dim == 0:
                size = -(-count // self._mesh.size(axis))
                first = min(self._mesh.get_local_rank(axis) * size, count)
                here = min(size, count - first)
        return first, here


def part_here(parameter: Tensor, contribution: Contribution) -> Contribution:
    """Return the part of a contribution that belongs to this process's part of a parameter.

    All processes of the row call it: operands may have to be sent.
    """
    with torch.no_grad():
        if is_distributed(parameter):
            put = Put(parameter)
            if put.cuts:
                return contribution.in_row(put)
            return contribution.map_examples(lambda operand: put(operand, {}))
        return contribution.map_examples(_whole)


def _whole(operand: Tensor) -> Tensor:
    if not is_distributed(operand):
        return arrived(operand)
    mesh: Any = operand.device_mesh  # type: ignore[attr-defined]
    return laid_out(operand, mesh, whole_on(mesh))
