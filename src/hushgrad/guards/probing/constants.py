"""Tensors that a loop brings into its programs from outside: constants of its own, or made anew for each item."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from enum import Enum

from torch import Tensor, nn

from hushgrad.capture.public import PublicTensors
from hushgrad.guards.probing.outside_changes import OutsideChanges
from hushgrad.guards.probing.outside_leaves import OutsideLeaves
from hushgrad.guards.probing.own_memory import OwnMemory, is_plain


class Origin(Enum):
    """What a tensor that no call on the batch has made was made of."""

    RANDOM = "random"  # drawn by torch, the same for each row
    FIXED = "fixed"  # made by torch's calls of nothing: ranges, ones
    PYTHON = "python"  # made of Python's numbers
    TRAINED = "trained"  # a parameter
    UNKNOWN = "unknown"


class Constants:
    """What a loop's programs hold from outside, told from item to item: the same tensors, or others each time.

    Args:
        public: those that were declared.
        model: the root, whose own tensors are none of these.
        is_private: whether the backward that runs accumulates gradients of the model.
    """

    def __init__(
        self,
        public: PublicTensors | None = None,
        model: nn.Module | None = None,
        is_private: Callable[[], bool] = lambda: True,
    ) -> None:
        self._public = public
        self._own = OwnMemory(model)
        self.changes = OutsideChanges(self._own)
        """Of their values."""
        self.leaves = OutsideLeaves(self._own, is_private)
        """Those that get gradients."""
        self._known: dict[int, weakref.ref[Tensor]] = {}
        self._open: dict[int, weakref.ref[Tensor]] = {}
        self._new: dict[int, weakref.ref[Tensor]] = {}
        self.are_made_anew = False
        """Whether some were gone by the end of a later item."""

    def are_declared(self, tensor: Tensor) -> bool:
        """Return whether a tensor was declared public."""
        return bool(self._public) and self._public is not None and self._public.holds(tensor)

    def are_of_model(self, tensor: Tensor) -> bool:
        """Return whether a tensor lies in memory of the model's own."""
        return is_plain(tensor) and self._own.holds(tensor)

    @property
    def are_open(self) -> bool:
        """Whether an item has brought some, and no later one has told yet."""
        return bool(self._open)

    def meet(self, tensor: Tensor | None) -> None:
        """An item's program holds this tensor, or what was made of it; None if it is gone already."""
        if tensor is None:
            self.are_made_anew = True
        elif self.are_declared(tensor):
            return  # known before the first item
        else:
            self.changes.meet(tensor)
            self._note(tensor)

    def _note(self, tensor: Tensor) -> None:
        if not any(_holds(refs, tensor) for refs in (self._known, self._open)):
            self._new[id(tensor)] = weakref.ref(tensor)

    def end_item(self, is_of_item: Callable[[Tensor], bool] = lambda tensor: False) -> None:
        """The program has ended; what came in an earlier item is a constant if it is still there.

        `is_of_item` tells of a tensor whether it has values of the item now.
        """
        self.changes.end_item(is_of_item)
        self._own.forget()
        alive = {key: known for key, known in self._open.items() if known() is not None}
        self.are_made_anew = self.are_made_anew or len(alive) < len(self._open)
        self._known.update(alive)
        self._open, self._new = self._new, {}


def _holds(refs: dict[int, weakref.ref[Tensor]], tensor: Tensor) -> bool:
    found = refs.get(id(tensor))
    return found is not None and found() is tensor
