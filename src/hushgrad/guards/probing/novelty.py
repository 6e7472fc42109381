"""What a later batch shows that the examined ones did not: another length, or records of different lengths for once.

A first batch whose records are all equally long proves nothing of what happens when they are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from torch import nn

from hushgrad.guards.probing.contents import contents
from hushgrad.guards.probing.trees import Path, tensors_at

MUCH = 0.75
"""A record that is shorter than this, relative to the shortest so far, is something new."""

SHORT = 0.05
"""Once a record was as short as this beside the longest, shorter ones show nothing more."""

Place = tuple[int, Path, int]
"""A module (its `id`), a path among its inputs, and an axis."""


class Spread:
    """Remembers how short records were beside the longest of their batch."""

    def __init__(self) -> None:
        self._shortest = 1.0

    def note(self, lengths: Sequence[int]) -> bool:
        """Take note of the lengths of a batch; return whether one was much shorter than any before, or the first."""
        found = min(lengths) / max(lengths) if lengths and max(lengths) else 1.0
        is_new = found < 1.0 if self._shortest == 1.0 else self._shortest > SHORT and found < MUCH * self._shortest
        if is_new:
            self._shortest = found
        return is_new


class Extremes:
    """The least and most examples of an item so far, and the longest record."""

    def __init__(self) -> None:
        self._least = self._most = self._longest = 0

    def note(self, size: int, extents: Sequence[int]) -> bool:
        """Take note of an item; return whether it goes beyond those before."""
        longest = max(extents, default=0)
        is_new = not self._least <= size <= self._most or longest > self._longest
        self._least, self._most = min(size, self._least or size), max(size, self._most)
        self._longest = max(longest, self._longest)
        return is_new


class Novelty:
    """Remembers what the calls of each module were like."""

    def __init__(self) -> None:
        self._lengths: dict[Place, int] = {}
        self._varying: set[Place] = set()
        self._shortest: dict[int, float] = {}  # of the records seen so far, relative to the longest
        self._due: set[int] = set()
        self.cuts: set[int] = set()
        """Lengths of inputs where the item was longer by more than a shift: the loop cuts to a constant there."""

    def note(
        self, module: nn.Module, inputs: Any, axes: Mapping[Path, int], item_lengths: Set[int] = frozenset()
    ) -> bool:
        """Take note of a call; return whether there is something about its module that is still to be looked at.

        Args:
            module: what is called.
            inputs: `(args, kwargs)`.
            axes: of its inputs, by their paths, the axes of the examples; without any nothing is told.
            item_lengths: those of the second axes of the loader's item.
        """
        own = id(module)
        for path, tensor in tensors_at(inputs):
            length = tensor.shape[1] if tensor.ndim > 1 else 0
            if item_lengths and length and not {length, length + 1} & item_lengths and length < max(item_lengths):
                self.cuts.add(length)
            of_batch = axes.get(path)
            for axis, length in enumerate(tensor.shape):
                if axis == of_batch:
                    continue
                place = (own, path, axis)
                if self._lengths.setdefault(place, length) != length and place not in self._varying:
                    self._varying.add(place)
                    self._due.add(own)
            is_of_numbers = tensor.ndim == 2 and not tensor.is_floating_point() and not tensor.is_complex()
            if is_of_numbers and of_batch == 0 and tensor.numel() and self._shortest.get(own, 1.0) > SHORT:
                lengths = contents(tensor)
                shortest = float(lengths.min() / lengths.max())
                if shortest < MUCH * self._shortest.get(own, 1.0):
                    self._shortest[own] = shortest
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
