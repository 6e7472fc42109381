"""What a later batch shows that the examined ones did not: another length, or records of different lengths for once.

A first batch whose records are all equally long proves nothing of what happens when they are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hushgrad.guards.probing.trees import Path, tensors_at
from hushgrad.guards.probing.widths import contents

Place = tuple[int, Path, int]
"""A module (its `id`), a path among its inputs, and an axis."""


class Novelty:
    """Remembers what the calls of each module were like."""

    def __init__(self) -> None:
        self._lengths: dict[Place, int] = {}
        self._varying: set[Place] = set()
        self._uneven: set[int] = set()
        self._due: set[int] = set()

    def note(self, module: nn.Module, inputs: Any, axes: Mapping[Path, int]) -> bool:
        """Take note of a call; return whether there is something about its module that is still to be looked at.

        Args:
            module: what is called.
            inputs: `(args, kwargs)`.
            axes: of its inputs, by their paths, the axes of the examples; without any nothing is told.
        """
        own = id(module)
        for path, tensor in tensors_at(inputs):
            of_batch = axes.get(path)
            for axis, length in enumerate(tensor.shape):
                if axis == of_batch:
                    continue
                place = (own, path, axis)
                if self._lengths.setdefault(place, length) != length and place not in self._varying:
                    self._varying.add(place)
                    self._due.add(own)
            is_of_numbers = tensor.ndim == 2 and not tensor.is_floating_point() and not tensor.is_complex()
            if own not in self._uneven and is_of_numbers and of_batch == 0 and tensor.numel():
                lengths = contents(tensor)
                if lengths.min() != lengths.max():
                    self._uneven.add(own)
                    self._due.add(own)
        return own in self._due

    def examined(self, module: nn.Module) -> None:
        """The module was looked at in the batch that the last note was of."""
        self._due.discard(id(module))

    def varying(self, module: nn.Module, inputs: Any) -> set[int]:
        """Return the lengths in a call of those axes whose length is not always the same."""
        return {
            tensor.shape[axis]
            for path, tensor in tensors_at(inputs)
            for axis in range(tensor.ndim)
            if (id(module), path, axis) in self._varying
        }
