"""Which outputs of a model have positions, as many as the longest record of a batch: learnt from runs of one record.

An output `[B, C]` of as many classes as the longest record has positions looks like one over positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hushgrad.guards.probing.trees import Path, tensors_at


class Positions:
    """Remembers, for each output of each module, the axes that were shorter for a short record alone."""

    def __init__(self) -> None:
        self._axes: dict[tuple[nn.Module, Path], frozenset[int]] = {}

    def learn(self, module: nn.Module, whole: Any, alone: Any, axes: Mapping[Path, int]) -> None:
        """Take note of what a batch gave, and what a record gave alone that is shorter than its longest.

        `axes`: of the examples, in each output.
        """
        own = dict(tensors_at(alone))
        for path, tensor in tensors_at(whole):
            other = own.get(path)
            if other is None or other.ndim != tensor.ndim:
                continue
            places = range(tensor.ndim)
            shorter = {n for n in places if n != axes.get(path) and other.shape[n] < tensor.shape[n]}
            self._axes[module, path] = frozenset(shorter)

    def of(self, module: nn.Module, path: Path) -> frozenset[int] | None:
        """Return the axes of an output that hold positions; None where that is not known."""
        return self._axes.get((module, path))
