"""Where the examples lie in a tensor: the axis of the batch, followed through the operators that move it.

The inputs of a model carry the batch on axis 0. An axis of `None` means that the tensor descends from the batch but
its examples can no longer be told apart by an axis; a tensor without an entry does not descend from the batch at all.

An axis means that example i owns the i-th of B equal blocks along it, so folding the positions behind the batch into
it (`[B, T, d]` to `[B·T, d]`) and unfolding them keeps it.

A worked example, with B = 2 examples of T = 3 positions, as in GPT-2's attention:

    x                            [2, 3, 8]        axis 0   an input of the model
    x.view(-1, 8)                [6, 8]           axis 0   rows 0, 1, 2 are example 0's block, rows 3, 4, 5 example 1's
    torch.addmm(b, _, W)         [6, 24]          axis 0   a use of W: its rows are assigned by these two blocks
    _.view(2, 3, 24)             [2, 3, 24]       axis 0   unfolded again
    _.split(8, 2)[0]             [2, 3, 8]        axis 0   a view, told by strides (`rules.viewed`)
    _.view(2, 3, 4, 2).transpose(1, 2)            axis 0   heads of attention, [2, 4, 3, 2]
    _.permute(2, 0, 1, 3)        [3, 2, 4, 2]     axis 1   the axis moves with the dimension
    _.reshape(6, 8)              [6, 8]           owners   rows are ordered t·B + b, no two blocks: see `segment_ids.py`
    _ - _.mean(0)                [6, 8]           None     each row depends on all others; a use of a parameter on it
                                                           is refused, by the name of `mean` and its line

That dimensions happen to be equal tells nothing: shapes only refuse (an axis must have the batch's size in the output),
they never choose.

Guarantee: an operator that has no rule loses the batch. A tensor whose axis is known holds, at each place along that
axis, values computed from that one example alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from hushgrad.capture.axes.conversions import Conversions
from hushgrad.capture.axes.layout import Layout, Path, Role, layout_of, owners_of
from hushgrad.capture.axes.memory import WrittenMemory, axis_in_base, axis_in_view
from hushgrad.capture.axes.owners import BatchLocation, SegmentIds, Whole, location_of, packed_owners
from hushgrad.capture.axes.parts import lists_in, named_tensors, tensors_at_top
from hushgrad.capture.axes.pieces import follow_pieces, form_of_cut, is_join
from hushgrad.capture.axes.recipes import Identities, Recipe, digest, recipe_of_call
from hushgrad.capture.axes.rules import Axis, OperatorCall, changes_in_place, main_argument
from hushgrad.capture.axes.segment_ids import follow_rows
from hushgrad.capture.axes.selections import (
    CONSTANT,
    NONZERO,
    WHERES,
    Coordinates,
    Listed,
    Location,
    Pointers,
    axis_after_mask,
    chooses,
    follow_selections,
    listed_of,
    placed,
    placed_by_columns,
    reads_numbers,
    regroups,
    rows_by_index,
)
from hushgrad.capture.axes.table import AXIS_RULES, CONSTANTS, COPIES, EMPTY_LIKE
from hushgrad.capture.public import PublicTensors
from hushgrad.capture.source_line import calling_forward
from hushgrad.errors import PrivacyUnitError
from hushgrad.torch_internals import base_of

CURE = (
    "Keep the batch on an axis of its own, and do not mix examples; or let each item hold one example only, which has "
    "no other to be mixed with: max_physical_batch_size=1"
)
BY_EXPERT = ("sort ", "argsort ", "index_add", "histc ", "nonzero ", "where ")
EXPERTS = (
    ". A mixture of experts of transformers, which sorts the words of all examples by expert, is exact after "
    'model.set_experts_implementation("batched_mm")'
)
NARROW = (torch.bfloat16, torch.float16)

INPUTS = "the model's inputs"
"""Where the batch was lost, for messages: one of them has another number of rows than there are examples."""

LATE_VIEW = "a view, made before values of the batch were written into its memory"

CURES = {
    LATE_VIEW: "Make the view after the write, or a clone before it",
    INPUTS: "Give each example one row of every input. One that is the same for all batches (a mask over positions, "
    "features or weights of classes) is declared before the loop, mask = engine.session.public(mask), and then given "
    "to the model as it is, no part or copy of it",
}


class BatchAxes:
    """The batch axis of each tensor that descends from the batch, for the length of one forward.

    Attributes:
        batch_size: the number of examples that the forward's inputs hold; None when it has no inputs.
        is_narrow: whether a gradient passes through 16 bits on its way to a parameter.
        selects: whether rows were selected by values of the batch.
        regroups: whether rows were selected or put in order by them.
        has_read: whether numbers of the batch left torch: its values, or how many rows were selected.
        written: memory of constants that holds the batch now.
        conversions: knows tensors of the batch again behind conversions to distributed ones; None in one process.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Location]] = {}
        self._inputs: set[int] = set()
        self._recipes: dict[int, tuple[weakref.ref[Tensor], Recipe]] = {}
        self._identities = Identities()
        self._divisions: dict[int, Tensor] = {}
        self._lost_by: str | None = None
        self._blamed: int | None = None  # by whose adoption they were lost
        self._counted: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._put_in_order: str | None = None
        self.batch_size: int | None = None
        self.is_narrow = False
        self.selects = self.regroups = self.has_read = False
        self._lists: list[Listed] = []
        self.written = WrittenMemory()
        self.conversions: Conversions | None = None

    @property
    def lost_by(self) -> str | None:
        """The first operator after which examples could not be told apart any more, for messages.

        One that gave a single number is named where that number met data, or if there is no other: forwards count the
        words of a batch only to check that they are there. Where none lost them, it is the first that put rows into an
        order of their own.
        """
        counted = next((name for _, name in self._counted.values()), None)
        return self._lost_by or counted or self._put_in_order

    @property
    def cure(self) -> str:
        """What helps, for messages."""
        by = self.lost_by or ""
        return CURES.get(by, CURE + EXPERTS * by.startswith(BY_EXPERT))

    def set(self, tensor: Tensor, location: Location) -> None:
        """Record that `tensor` descends from the batch."""
        if tensor.dtype in NARROW and tensor.requires_grad:
            self.is_narrow = True
        self._entries[id(tensor)] = (weakref.ref(tensor), location)
        if self.conversions is not None:
            self.conversions.took(tensor, self.location(tensor))

    def forget(self, tensor: Tensor) -> None:
        """Take a tensor for no data: it was seen before it was known what it is."""
        self._entries.pop(id(tensor), None)
        if self._blamed == id(tensor):
            self._lost_by = self._blamed = None

    def descends(self, tensor: Tensor) -> bool:
        """Return whether `tensor` descends from the batch."""
        entry = self._entries.get(id(tensor))
        return entry is not None and entry[0]() is tensor

    def get(self, tensor: Any) -> Axis:
        """Return the batch axis of `tensor`; None if it has none."""
        location = self.location(tensor)
        return location if isinstance(location, int) else None

    def location(self, tensor: Any) -> BatchLocation:
        """Return where the batch lies in `tensor`: on an axis, or in rows with owners; None if it is not known."""
        location = self._found(tensor)
        return None if isinstance(location, (Pointers, Coordinates, Listed)) else location

    def _found(self, tensor: Any) -> Location:
        """Return the location of a tensor, or what it points to."""
        entry = self._entries.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def is_input(self, tensor: Any) -> bool:
        """Return whether `tensor` is one of the forward's inputs as it was given."""
        return isinstance(tensor, Tensor) and self.descends(tensor) and id(tensor) in self._inputs

    @property
    def reads_in_part(self) -> bool:
        """Whether the forward looped over some of what is there in the batch, and left the rest out."""
        return any(listed.is_read_in_part for listed in self._lists)

    def clear(self) -> None:
        """Forget everything: the forward is over."""
        self._entries.clear()
        self._recipes.clear()
        self._identities.clear()
        self._inputs.clear()
        self._divisions.clear()
        self._lists.clear()
        self.written.clear()

    def seed(
        self,
        inputs: Any,
        batch_size: int | None,
        known: dict[Path, Role] | None = None,
        public: PublicTensors | None = None,
    ) -> int | None:
        """Record the tensors among a model's inputs and return the number of examples they hold.

        Without a declared `batch_size` the first tensor decides. A tensor with one row beside inputs of several is a
        constant; what else is not on the first axis is told by `layout_of`, or has lost its batch.

        Args:
            inputs: nested.
            batch_size: B as declared.
            known: roles of inputs, by their paths; takes those that are found here.
            public: what was declared, and is no data.

        Raises:
            ContractChangedError: a declared tensor was written to.
        """
        tensors = [tensor for tensor in tensors_in(inputs) if tensor.ndim > 0]
        declared = {id(tensor) for tensor in tensors if public.met(tensor)} if public else set()
        tensors = [tensor for tensor in tensors if id(tensor) not in declared]
        if any(tensor.is_nested for tensor in tensors):
            raise nested_is_given("the model")
        packed = list(packed_in(inputs))
        sizes = [tensor.shape[0] for tensor in tensors] + [int(part.batch_sizes[0]) for part in packed]
        if known or batch_size is None or not all(size in (1, batch_size) for size in sizes) or batch_size not in sizes:
            roles = {} if known is None else known
            batch_size = self._seed_others(inputs, batch_size, sizes, roles, declared)
        else:
            for tensor in tensors:
                self._place(tensor, Role.FIRST if tensor.shape[0] == batch_size else Role.CONSTANT, 0)
        for part in packed:
            if int(part.batch_sizes[0]) != batch_size:
                self._lose(part.data, INPUTS)
                continue
            sequences = part.sorted_indices
            sequences = torch.arange(batch_size, device=part.data.device) if sequences is None else sequences
            self.set(part.data, SegmentIds(0, packed_owners(part.batch_sizes, sequences)))
        self.batch_size = batch_size
        return batch_size

    def _seed_others(
        self, inputs: Any, batch_size: int | None, sizes: Sequence[int], known: dict[Path, Role], declared: Set[int]
    ) -> int | None:
        """Record inputs of which not all have the examples on the first axis."""
        if batch_size is None:
            batch_size = next((size for size in sizes if size != 1), 1 if sizes else None)
            if batch_size is None:
                return None
        placed = {*self._seed_entries(inputs, batch_size, known), *declared}
        named = [(path, part) for path, part in named_tensors(inputs) if part.ndim and id(part) not in placed]
        layout = layout_of(named, batch_size, known)
        told = {path: role for path, role in layout.roles.items() if role not in (Role.CONSTANT, Role.LOST)}
        if not told and not placed - declared and batch_size not in sizes:  # rows of something else than the examples
            batch_size = next((size for size in sizes if size != 1), 1 if sizes else None)
            layout = layout_of(named, batch_size or 0)
        elif batch_size > 1:
            known.update(told)
        for total, counts in {**layout.links, **layout.counts}.items():
            if layout.counts.get(total, counts) == layout.links.get(total, counts):
                self._divisions[total] = owners_of(counts)
        for path, tensor in named:
            self._place(tensor, layout.roles[path], _location_in(layout, path, tensor, batch_size or 0))
        return batch_size

    def _place(self, tensor: Tensor, role: Role, location: BatchLocation) -> None:
        """Record one input."""
        self._inputs.add(id(tensor))
        if role is Role.LOST and location is None:
            self._lose(tensor, INPUTS)
        elif role is not Role.CONSTANT:
            self.set(tensor, location)

    def _seed_entries(self, inputs: Any, batch_size: int, known: dict[Path, Role]) -> Iterator[int]:
        """Record the tensors of lists with an entry for each example, and yield their ids."""
        for path, entries in lists_in(inputs, batch_size, known):
            if batch_size > 1:
                known[path] = Role.ENTRIES
            for example, entry in enumerate(entries):
                for part, tensor in named_tensors(entry):
                    self._inputs.add(id(tensor))
                    self.set(tensor, Whole(example))
                    self._recipes[id(tensor)] = (weakref.ref(tensor), digest("an entry of", path, part))
                    yield id(tensor)

    def adopt(self, tensor: Tensor) -> None:
        """Record a tensor that requires gradients and came from nowhere the forward saw: data without an axis."""
        if self._lost_by is None:
            self._blamed = id(tensor)
        self._lose(
            tensor,
            "a custom autograd function (hushgrad.register_operator makes it known), a scripted or traced part, or a "
            "tensor made outside this forward",
        )

    def shows_written(self, tensor: Tensor) -> bool:
        """Record a tensor made as one of constants, if values of the batch were written into its memory since."""
        holders = self.written.holders(tensor)
        if not holders:
            return False
        holder = holders[0] if len(holders) == 1 else None
        own = None if holder is None else self.get(holder)
        axis: BatchLocation = None if holder is None or own is None else axis_in_view(holder, tensor, own)
        if axis is None:
            axis = self._of_the_only_one(tensor)
        if axis is None:
            self._lose(tensor, LATE_VIEW)
        else:
            self.set(tensor, axis)
        return True

    def follow(
        self,
        func: Callable[..., Any],
        sources: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> None:
        """Record the outputs of an operator that took `sources`, tensors that descend from the batch.

        Raises:
            PrivacyUnitError: a tensor whose examples could be told apart was overwritten so that they no longer can.
        """
        if self._follows_alone(func, sources, args, kwargs, result):
            return
        outputs = tensors_at_top(result)
        if not outputs or func in CONSTANTS or (func in COPIES and not self._is_copy(func, args, kwargs)):
            self.has_read = self.has_read or any(isinstance(self._found(source), Listed) for source in sources)
            self.has_read = self.has_read or (not outputs and reads_numbers(func, map(self._found, sources)))
            return
        name = func.__name__
        known_of = [self._found(source) for source in sources]
        locations = [None if isinstance(part, (Pointers, Coordinates, Listed)) else part for part in known_of]
        if func in EMPTY_LIKE and isinstance(locations[0], SegmentIds) and locations[0].moved is not None:
            return  # in the shape of rows in another order, but in none itself
        axes = [location for location in locations if isinstance(location, int)]
        known = self.batch_size is not None and len(axes) == len(locations)
        call = OperatorCall(func, args, kwargs, sources, axes if known else [0] * len(locations), self.batch_size or 0)
        rule = None if func in WHERES and len(args) + len(kwargs) == 1 else AXIS_RULES.get(func)
        written = main_argument(args, kwargs) if changes_in_place(func) else kwargs.get("out")
        for output_index, out in outputs:
            axis: Any = rule(call, out, output_index) if rule is not None and known else None
            if axis is None and self.batch_size and (any(part is not None for part in known_of) or func in NONZERO):
                if self.batch_size > 1:
                    axis = follow_selections(call, known_of, result, out, output_index)
                    self.selects = self.selects or chooses(axis)
                    self.regroups = self.regroups or regroups(axis)
                    self.has_read = self.has_read or any(listed.read for listed in self._lists)
                    if isinstance(axis, Listed) and axis not in self._lists:
                        self._lists.append(axis)
                if axis is None:
                    axis = follow_rows(call, locations, out, output_index, rule, self._divisions)
            if axis is None and self.batch_size and self.batch_size > 1:
                axis = follow_pieces(call, locations, out, output_index, rule)
            recipe = self._recipe_of(call, locations, axis, output_index)
            if axis is not None and recipe is None and self._pieces(call):
                axis = None
            if axis is None and None not in locations:
                axis = self._of_the_only_one(out)
            if out is written:
                self._overwritten(out, axis, name)
            elif axis is None:
                self._lose(out, name, sources)
            else:
                self.set(out, axis)
                if self._put_in_order is None and isinstance(axis, SegmentIds):
                    self._put_in_order = name + calling_forward()
                if recipe and not isinstance(axis, int):
                    self._recipes[id(out)] = (weakref.ref(out), recipe)

    def _is_copy(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a tensor is made anew with values of the batch."""
        return any(self.descends(part) for part in tensors_in(kwargs.get(COPIES[func], args[-1])))

    def takes_number(self, args: tuple[Any, ...], sources: Sequence[Tensor]) -> bool:
        """Return whether `table[number]` reads a constant at a number of what is there in the batch."""
        if len(sources) != 1 or args[1] is not sources[0]:
            return False
        found = listed_of(args[1], [self._found(args[1])], sources) is not None
        self.has_read = self.has_read or found
        return found

    def _of_the_only_one(self, tensor: Tensor) -> BatchLocation:
        """Return where a batch of one example lies in what was made of it: there is no other to be mixed with."""
        if self.batch_size != 1:
            return None
        return 0 if tensor.ndim else Whole(0)

    def recipe(self, tensor: Tensor) -> Recipe | None:
        """Return how a piece of the batch was made; None for what is no piece."""
        entry = self._recipes.get(id(tensor)) if self._recipes else None
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def _pieces(self, call: OperatorCall) -> Sequence[Tensor]:
        """Return the data of a call if there are pieces among them; parts without values count for nothing."""
        if not self._recipes:
            return []
        sources = [source for source in call.sources if source.numel()] if is_join(call.func) else call.sources
        return sources if any(self.recipe(source) is not None for source in sources) else []

    def _recipe_of(
        self, call: OperatorCall, locations: list[BatchLocation], location: BatchLocation, output_index: int
    ) -> Recipe | None:
        """Return the recipe of an output that is a piece, or was made of pieces all made alike; else None."""
        if location is None:
            return None
        sources = self._pieces(call)
        if not sources:
            if call.images is None or isinstance(location, int):
                return None
            form = form_of_cut(call, locations[0], output_index)
            return None if form is None else digest(self._identities.now(call.first), form)
        recipes = {self.recipe(source) for source in sources}
        is_within_one = isinstance(location, Whole) and all(part == location for part in locations)
        is_across = is_join(call.func) and not is_within_one
        if None in recipes or (is_across and len(recipes) > 1):
            return None
        if is_across:
            dim = call.argument(1, "dim", call.kwargs.get("axis", 0))
            return digest("joined", recipes, len(sources), dim)
        return recipe_of_call(call, output_index, self.recipe, self._identities)

    def _follows_alone(
        self,
        func: Callable[..., Any],
        sources: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> bool:
        """Do the most common case of `follow`, and say whether this was it: one tensor of the batch gives another one.

        A step of 400 small layers spends 1 ms less this way.
        """
        if len(sources) != 1 or not isinstance(result, Tensor) or self.batch_size is None:
            return False
        location, rule = self.location(sources[0]), AXIS_RULES.get(func)
        if rule is None or not isinstance(location, int) or func in CONSTANTS or changes_in_place(func):
            return False
        if kwargs and kwargs.get("out") is not None:
            return False
        axis = rule(OperatorCall(func, args, kwargs, sources, [location], self.batch_size), result, 0)
        if axis is None:
            return False
        self.set(result, axis)
        return True

    def wrote(self, target: Tensor, index: Any, value: Any) -> None:
        """Record `target[index] = value`, by which `target` holds rows of the batch."""
        if self.recipe(target) is not None:
            self._overwritten(target, None, "__setitem__")
        axis: BatchLocation
        if isinstance(value, Tensor) and self.descends(value):
            axis = self._axis_after_write(target, index, value)
        elif any(self.descends(part) for part in tensors_in(index)):
            if isinstance(self.location(target), SegmentIds) or (self.descends(target) and self.get(target) is None):
                return self._wrote_into_rows(target, index)
            axis = self._axis_after_constant(target, index)
        else:
            if self.descends(target) and self.batch_size != 1:
                self._wrote_constant(target, index, value)
            return
        if axis is None:
            axis = self._of_the_only_one(target)
        self._overwritten(target, axis, "__setitem__")

    def _axis_after_write(self, target: Tensor, index: Any, value: Tensor) -> Axis:
        value_axis, size = self.get(value), self.batch_size
        if size is None:
            return None
        axis = self._axis_after_rows(target, index, value, size)
        if axis is not None or value_axis is None:
            return axis
        if self.descends(target):
            own = self.get(target)
            candidates = [] if own is None else [own]
        else:
            candidates = [axis for axis in range(target.ndim) if target.shape[axis] == value.shape[value_axis]]
        for axis in candidates:
            part, found = self.part(target, axis, index)
            if found is not None and part.ndim - found == value.ndim - value_axis:
                return axis
        return None

    def _axis_after_constant(self, target: Tensor, index: Any) -> Axis:
        """Return the axis after `target[index] = constant`, at places that the batch says."""
        where, size = index[0] if isinstance(index, tuple) and len(index) == 1 else index, self.batch_size
        own = self.get(target)
        if isinstance(where, Tensor):
            found = self._found(where)
            if where.dtype == torch.bool and isinstance(found, int):
                return found if own in (None, found) and target.shape[found] == where.shape[found] else None
            if isinstance(found, Pointers):
                return 0 if own in (None, 0) and found.moved is None and found.count == target.shape[0] else None
        candidates = [axis for axis in range(target.ndim) if target.shape[axis] == size] if own is None else [own]
        return next((axis for axis in candidates if self.part(target, axis, index)[1] is not None), None)

    def _wrote_into_rows(self, target: Tensor, index: Any) -> None:
        """Record a constant that is written into rows with owners where a mask of these rows says, or lose them."""
        location, mask = self.location(target), index[0] if isinstance(index, tuple) and len(index) == 1 else index
        own = self.location(mask)
        if not isinstance(location, SegmentIds):
            return
        is_own = isinstance(own, SegmentIds) and location.dim == own.dim and location.same_rows(own)
        if not is_own or mask.dtype != torch.bool:
            self._lose(target, "__setitem__")

    def _wrote_constant(self, target: Tensor, index: Any, value: Any) -> None:
        """Record constants that are written into data at places that are constants.

        Rows in an irregular order are treated alike or lost: their first and last ones are so by what others hold.
        """
        self._identities.wrote(target)
        location = self._found(target)
        if isinstance(location, SegmentIds):
            part, get = target.detach()[index], Tensor.__getitem__
            call = OperatorCall(get, (target, index), {}, [target], [location.dim], location.rows.shape[0])
            found = AXIS_RULES[get](call, part, 0)
            distance = 0 if found is None else part.ndim - found
            is_of_rows = isinstance(value, Tensor) and value.ndim >= distance and value.shape[-distance] != 1
            if found is None or part.shape[found] != location.rows.shape[0] or is_of_rows:
                self._overwritten(target, None, "__setitem__")
        elif location is None or isinstance(location, (Pointers, Coordinates, Listed)):
            self._overwritten(target, None, "__setitem__")

    def _axis_after_rows(self, target: Tensor, index: Any, value: Tensor, size: int) -> Axis:
        """Return the axis after `target[mask] = rows` and `target[pointers] = rows`; None for other forms."""
        where = index[0] if isinstance(index, tuple) and len(index) == 1 else index
        if isinstance(where, tuple):
            sources = [part for part in (target, value, *tensors_in(where)) if self.descends(part)]
            call = OperatorCall(Tensor.__setitem__, (target, where, value), {}, sources, [0] * len(sources), size)
            return placed_by_columns(call, [self._found(part) for part in sources], where, value)
        if not isinstance(where, Tensor) or not self.descends(where):
            return None
        location = self._found(target) if self.descends(target) else CONSTANT
        rows, places = (value, self.location(value)), self._found(where)
        if where.dtype == torch.bool:
            return axis_after_mask(target, location, (where, places), rows, size)
        return placed(target, location, 0, (where, places), rows, size)

    def part(self, target: Tensor, axis: int, index: Any) -> tuple[Tensor, Axis]:
        """Return `target[index]`, detached, and its batch axis if the one of `target` is `axis`."""
        part = target.detach()[index]
        rows = [value for value in tensors_in(index) if self.descends(value)]
        axes = [self.get(value) for value in rows]
        if None in axes:
            return part, None
        known = [axis, *[own or 0 for own in axes]]
        get = Tensor.__getitem__
        call = OperatorCall(get, (target, index), {}, [target, *rows], known, self.batch_size or 0)
        return part, AXIS_RULES[get](call, part, 0)

    def rows_at(self, target: Tensor, index: Any) -> tuple[Tensor, BatchLocation]:
        """Return `target[index]`, detached, for a mask or pointers of the batch, and where the batch lies in it."""
        part = target.detach()[index]
        sources = [value for value in (target, *tensors_in(index)) if self.descends(value)]
        size = self.batch_size or 0
        call = OperatorCall(Tensor.__getitem__, (target, index), {}, sources, [0] * len(sources), size)
        return part, rows_by_index(call, [self._found(value) for value in sources], part) if size > 1 else 0

    def _overwritten(self, tensor: Tensor, axis: BatchLocation, name: str) -> None:
        if not tensor.numel():
            return
        self._identities.wrote(tensor)
        if self.recipe(tensor) is not None or (isinstance(axis, Whole) and self.batch_size != 1):
            axis = None  # what else shares its memory would have changed with it
        if axis is None and (self.get(tensor) is not None or self._is_seen_elsewhere(tensor)):
            raise _mixed(tensor, name)
        base = base_of(tensor)
        if not self.descends(tensor):
            self.written.note(tensor if base is None else base)
            if base is not None and base is not tensor:
                self._wrote_into(base, tensor, axis, name)
        if axis is None:
            self._lose(tensor, name)
        else:
            self.set(tensor, axis)

    def _wrote_into(self, base: Tensor, view: Tensor, axis: BatchLocation, name: str) -> None:
        """Record that a part of `base`, which held none of the batch, does now."""
        own: BatchLocation = axis_in_base(base, view, axis) if isinstance(axis, int) else None
        if own is None and axis is not None:
            own = self._of_the_only_one(base)
        if not self.descends(base):
            if own is None:
                self._lose(base, f"a write into a view by {name}")
            else:
                self.set(base, own)
        elif self.location(base) is not None and self.location(base) != own:
            raise _mixed(base, name)

    def _is_seen_elsewhere(self, tensor: Tensor) -> bool:
        """Whether a tensor's memory is that of another one whose examples can be told apart."""
        if tensor.layout != torch.strided:
            return False
        memory = tensor.untyped_storage().data_ptr()
        others = [(reference(), location) for reference, location in self._entries.values()]
        return any(
            other.untyped_storage().data_ptr() == memory
            for other, location in others
            if other is not None and other is not tensor and location is not None and other.layout == torch.strided
        )

    def _lose(self, tensor: Tensor, name: str, sources: Sequence[Tensor] = ()) -> None:
        if self._lost_by is None:
            known = [(source, self._counted.get(id(source))) for source in sources]
            causes = [entry[1] for source, entry in known if entry is not None and entry[0]() is source]
            cause = causes[0] if causes else name + calling_forward()
            if tensor.ndim:
                self._lost_by = cause
            else:
                self._counted[id(tensor)] = (weakref.ref(tensor), cause)
        self.set(tensor, None)


def nested_is_given(where: str) -> PrivacyUnitError:
    """Return the error for nested tensors, whose operators show nothing of their rows."""
    return PrivacyUnitError(
        "nested (jagged) tensors are not followed, so that the examples of the batch cannot be told apart in them",
        where=where,
        cure="Give the model the rows end to end and the example that owns each, and add them up by it: "
        "x = torch.cat(records), owners = torch.arange(B).repeat_interleave(lengths) in collate_fn, and "
        "torch.zeros(B, d).index_add(0, owners, h) in the forward; or pad, with a mask",
    )


def _location_in(layout: Layout, path: Path, tensor: Tensor, batch_size: int) -> BatchLocation:
    """Return where the examples lie in an input; None where an operator must tell them apart, or none can."""
    role = layout.roles[path]
    if role in (Role.FIRST, Role.SECOND):
        return int(role is Role.SECOND)
    counts = layout.counts_at(path, tensor)
    if counts is not None:
        return location_of(int(role is Role.LINKS), owners_of(counts, tensor.device), batch_size)
    return 0 if role is Role.LOST and batch_size == 1 else None  # there is no other example


def _mixed(tensor: Tensor, name: str) -> PrivacyUnitError:
    return PrivacyUnitError(
        f"changes a tensor of shape {list(tensor.shape)} in place, so that the examples of the batch can no longer be "
        f"told apart in it",
        where=name,
        cure="Make a new tensor, and keep the batch on an axis of its own; or let each item hold one example only: "
        "max_physical_batch_size=1" + EXPERTS * name.startswith(BY_EXPERT),
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors inside nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        return
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from tensors_in(getattr(value, entry.name))


def packed_in(value: Any) -> Iterator[PackedSequence]:
    """Yield the packed sequences inside nested inputs; their rows belong to examples in no regular order."""
    if isinstance(value, PackedSequence):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from packed_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from packed_in(part)
