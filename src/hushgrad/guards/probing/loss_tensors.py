"""The tensors of a program by number: which hold values of the batch, and where the others come from."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hushgrad.guards.probing.length_recipes import LengthRecipes
from hushgrad.guards.probing.live_memory import UNSEEN_MEMORY, WRITTEN_UNSEEN, LiveMemory, Written, shared
from hushgrad.guards.probing.loop_line import loop_frame
from hushgrad.guards.probing.loss_program import Earlier, Made, Place, Program, Slot, Source, tensors_of
from hushgrad.guards.probing.outside_values import OutsideValues
from hushgrad.guards.probing.trace_places import place_of, running
from hushgrad.torch_internals import base_of, version

MOST_KEPT = 2**26
"""A program that works on more values than this which it did not compute itself is not run again."""


class LossTensors:
    """What one item's calls are on: each tensor has a number, and `live` are those with values of the batch."""

    def __init__(self, program: Program, outside: OutsideValues, earlier: Earlier) -> None:
        """Begin with none; sources, and why not all is seen, go to the program."""
        self._program = program
        self._outside = outside
        self._earlier = earlier
        self.recipes = LengthRecipes()
        self.live: set[int] = set()
        self.memory = LiveMemory()
        self.applied: dict[int, tuple[Any, int]] = {}
        """By the node that an autograd function of the loop's made, the node and the number of its call."""
        self.has_taken = False
        """Whether numbers have left torch."""
        self.has_read = False
        """Whether values were read in a way that leaves no number in the program."""
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._count = 0
        self._kept = 0

    def forget(self) -> None:
        """Hold no tensor any more; what is in the program stays."""
        self._known.clear()
        self.memory.clear()
        self.applied.clear()

    def has_met(self, tensor: Tensor) -> bool:
        """Whether a tensor has a number, or one has had it that was at this place in memory."""
        return id(tensor) in self._known

    def of_batch(self) -> dict[int, tuple[weakref.ref[Tensor], int]]:
        """Return those with values of the batch, with their numbers, by `id`."""
        return {key: known for key, known in self._known.items() if known[1] in self.live}

    def is_live(self, tensor: Tensor) -> bool:
        """Whether a tensor is known to hold values of the batch."""
        return self.slot(tensor) in self.live

    def slot(self, tensor: Tensor) -> int | None:
        """Return its number; None while it has none."""
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        return self._applied_output(tensor) if self.applied else None

    def without_number(self, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield those that have none when they are come to."""
        return (tensor for tensor in tensors if self.slot(tensor) is None)

    def _name(self, tensor: Tensor) -> int:
        self._count += 1
        self._known[id(tensor)] = weakref.ref(tensor), self._count
        return self._count

    def made(self, tensor: Tensor) -> int:
        """A call on values of the batch has made or changed it: return its number."""
        slot = self.slot(tensor)
        if slot is None:
            slot = self._name(tensor)
        self.live.add(slot)
        return slot

    def adopt(self, tensor: Tensor, kind: str) -> int:
        """Give a number to what no call of the program has made, a source of this `kind`."""
        if kind == "constant" and tensor.requires_grad and not tensor.is_leaf:
            self._program.hide("a value that comes from inside the model, or from calls that are not seen")
        slot = self._name(tensor)
        values = tensor.detach()
        self._kept += values.numel()
        if self._kept > MOST_KEPT:
            self._program.hide("it works on too many values")
            values = values.new_empty(0)
        self._program.sources[slot] = Source(values, version(tensor), kind)
        if kind in ("constant", "number"):
            self._program.origins[slot] = self._outside.origin(tensor)
            if (recipe := self.recipes.of(tensor)) is not None:
                self._program.recipes[slot] = recipe.made
        if kind in ("item", "output"):
            self.live.add(slot)
            if kind == "item" or not self._outside.is_of_model(tensor):
                self.memory.note([(tensor, slot)])
        return slot

    def given(self, value: Any, *, is_changed: bool) -> Any:
        """Return what stands for an argument in the program; `is_changed`: the call writes to its arguments."""
        if isinstance(value, torch.Generator):
            return value.clone_state()  # as it stands now
        if not isinstance(value, Tensor):
            return value
        tensor = value
        if not self.is_of_item(tensor):
            self.takes_over(tensor)
        slot = self.slot(tensor)
        if slot is None:
            kind = "number" if self.has_taken else "constant"
            if self._earlier.holds(tensor):
                kind = "earlier"
            else:
                self._outside.meet(tensor)
            slot = self.adopt(tensor, kind)
        if slot in self._program.sources and is_changed:
            source = self._program.sources[slot]
            if source.version == version(tensor) and source.values.data_ptr() == tensor.data_ptr():
                values = tensor.detach().clone()
                self._program.sources[slot] = source._replace(values=values, version=version(values))
        return Slot(slot)

    def is_of_item(self, tensor: Tensor) -> bool:
        """Adopt a tensor that holds what the item holds as an array or a list; return whether it does."""
        if not self._outside.is_readable or self.slot(tensor) is not None:
            return False
        path = self._outside.path_in_item(tensor)
        if path is not None:
            self.adopt(tensor, "item")
        return path is not None

    def knows(self, args: Any) -> bool:
        """Whether what is changed in place is a tensor of the program's, if of none of the item's values."""
        return bool(args) and isinstance(args[0], Tensor) and self.slot(args[0]) is not None

    def is_unknown(self, tensor: Any) -> bool:
        """Whether a tensor can be none of the program's, nor hold what the item holds as an array or a list."""
        return id(tensor) not in self._known and not self.applied and not self._outside.is_readable

    def takes_batch(self, args: Any, kwargs: Any) -> bool:
        """Whether values of the batch are among these arguments."""
        return any(
            self.is_live(tensor) or self.is_of_item(tensor) or self.takes_over(tensor, may_be_ours=True)
            for tensor in tensors_of(args, kwargs)
        )

    def takes_over(self, tensor: Tensor, *, may_be_ours: bool = False) -> bool:
        """Whether a tensor lies in memory that holds values of the batch, which it then gets a number for.

        `may_be_ours`: the call that it is given to may be one of this library's own, which is no part of the program.
        """
        slot = self.slot(tensor)
        if slot in self.live or not self.memory.holds(tensor):
            return False
        if tensor.requires_grad and not tensor.is_leaf:
            return False
        view = self.memory.found(tensor)
        if view is None and may_be_ours and running()[0] is None:
            return False
        if view is None:
            self._program.hide(UNSEEN_MEMORY)
            slot = self.adopt(tensor, "number") if slot is None else slot
        else:
            slot = self._share(tensor, view)
        self.live.add(slot)
        return True

    def _share(self, tensor: Tensor, view: tuple[int, Any]) -> int:
        """Write down that a tensor lies in the memory of another one, and return its number."""
        slot = self._name(tensor)
        frame = loop_frame()
        place = Place("", 0) if frame is None else place_of(frame)
        made = Made(shared, (Slot(view[0]), view[1]), {}, (slot,), place, tensor.requires_grad, ())
        self._program.calls.append(made)
        return slot

    def adopt_bases(self, changed: Iterable[Tensor]) -> None:
        """Adopt what tensors are views of that a call changes, so that what it writes there is seen there as well."""
        for tensor in changed:
            base = base_of(tensor)
            if base is None or self.slot(tensor) is not None or self.takes_over(tensor):
                continue
            self.given(base, is_changed=True)
            if (slot := self.slot(base)) is not None and (view := self.memory.begin(tensor, base, slot)) is not None:
                self._share(tensor, view)

    def note_written(self, tensor: Tensor, *, is_of_batch: bool) -> None:
        """A call wrote to a tensor; `is_of_batch`: values of the batch, maybe, so that all of its memory is of it."""
        if (slot := self.slot(tensor)) is None:
            return
        self.live.add(slot)
        if slot in self._program.sources and base_of(tensor) is not None:
            self._program.hide("values are written into a part of a tensor")
        if is_of_batch:
            self.has_read = self.memory.take(tensor, slot) or self.has_read

    def written_beside(self, written: Written) -> list[Tensor]:
        """Return what a call wrote to that held nothing of the batch; the program begins with what was there before."""
        found = []
        for tensor, before in written.changed():
            slot = self.slot(tensor)
            found.append(tensor)
            if slot not in self._program.sources:
                continue
            if before is None:
                self._program.hide(WRITTEN_UNSEEN)
            elif self._program.sources[slot].values.data_ptr() == tensor.data_ptr():
                source = self._program.sources[slot]
                self._program.sources[slot] = source._replace(values=before, version=version(before))
        return found

    def _applied_output(self, tensor: Tensor) -> int | None:
        """Return the slot of what an autograd function made, which is first seen as it is used."""
        node = tensor.grad_fn
        if node is None or (found := self.applied.get(id(node))) is None:
            return None
        call = self._program.calls[found[1]]
        slot = self._name(tensor)
        self.live.add(slot)
        places = {**dict(call.places), tensor.output_nr: slot}
        self._program.calls[found[1]] = replace(call, outputs=tuple(places.values()), places=tuple(places.items()))
        return slot
