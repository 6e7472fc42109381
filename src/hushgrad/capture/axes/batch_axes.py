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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from hushgrad.capture.axes.memory import axis_in_base
from hushgrad.capture.axes.pieces import follow_pieces, form_of_cut, is_join
from hushgrad.capture.axes.recipes import Identities, Recipe, digest, recipe_of_call
from hushgrad.capture.axes.rules import Axis, OperatorCall, changes_in_place, main_argument
from hushgrad.capture.axes.segment_ids import BatchLocation, SegmentIds, Whole, follow_rows, packed_owners
from hushgrad.capture.axes.table import AXIS_RULES, CONSTANTS
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


class BatchAxes:
    """The batch axis of each tensor that descends from the batch, for the length of one forward.

    Attributes:
        batch_size: the number of examples that the forward's inputs hold; None when it has no inputs.
        is_narrow: whether a gradient passes through 16 bits on its way to a parameter.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], BatchLocation]] = {}
        self._inputs: set[int] = set()
        self._recipes: dict[int, tuple[weakref.ref[Tensor], Recipe]] = {}
        self._identities = Identities()
        self._lost_by: str | None = None
        self._counted: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self.batch_size: int | None = None
        self.is_narrow = False

    @property
    def lost_by(self) -> str | None:
        """The first operator after which examples could not be told apart any more, for messages.

        One that gave a single number is named where that number met data, or if there is no other: forwards count the
        words of a batch only to check that they are there.
        """
        return self._lost_by or next((name for _, name in self._counted.values()), None)

    @property
    def cure(self) -> str:
        """What helps, for messages."""
        return CURE + EXPERTS * (self.lost_by or "").startswith(BY_EXPERT)

    def set(self, tensor: Tensor, location: BatchLocation) -> None:
        """Record that `tensor` descends from the batch."""
        if tensor.dtype in NARROW and tensor.requires_grad:
            self.is_narrow = True
        self._entries[id(tensor)] = (weakref.ref(tensor), location)

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
        entry = self._entries.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def is_input(self, tensor: Any) -> bool:
        """Return whether `tensor` is one of the forward's inputs as it was given."""
        return isinstance(tensor, Tensor) and self.descends(tensor) and id(tensor) in self._inputs

    def clear(self) -> None:
        """Forget everything: the forward is over."""
        self._entries.clear()
        self._recipes.clear()
        self._identities.clear()
        self._inputs.clear()

    def seed(self, inputs: Any, batch_size: int | None) -> int | None:
        """Record the tensors among a model's inputs and return the number of examples they hold.

        Without a declared `batch_size` the first tensor decides. A tensor with one row beside inputs of several is a
        constant; one whose first dimension is something else has lost its batch, as have the flat ids of bags with
        their offsets (from which an embedding bag tells the examples apart again).
        """
        tensors = [tensor for tensor in tensors_in(inputs) if tensor.ndim > 0]
        packed = list(packed_in(inputs))
        sizes = [tensor.shape[0] for tensor in tensors] + [int(part.batch_sizes[0]) for part in packed]
        is_known = batch_size in sizes or any(_bounds_bags(tensor, batch_size) for tensor in tensors)
        if batch_size is None or not is_known:
            batch_size = next((size for size in sizes if size != 1), 1 if sizes else None)
        for tensor in tensors:
            self._inputs.add(id(tensor))
            if tensor.shape[0] == batch_size:
                self.set(tensor, 0)
            elif tensor.shape[0] != 1:
                self._lose(tensor, "the model's inputs")
        for part in packed:
            if int(part.batch_sizes[0]) != batch_size:
                self._lose(part.data, "the model's inputs")
                continue
            sequences = part.sorted_indices
            sequences = torch.arange(batch_size, device=part.data.device) if sequences is None else sequences
            self.set(part.data, SegmentIds(0, packed_owners(part.batch_sizes, sequences)))
        self.batch_size = batch_size
        return batch_size

    def adopt(self, tensor: Tensor) -> None:
        """Record a tensor that requires gradients and came from nowhere the forward saw: data without an axis."""
        self._lose(
            tensor,
            "a custom autograd function (hushgrad.register_operator makes it known), a scripted or traced part, or a "
            "tensor made outside this forward",
        )

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
        outputs = _tensors_at_top(result)
        if not outputs or func in CONSTANTS:
            return
        name = func.__name__
        locations = [self.location(source) for source in sources]
        axes = [location for location in locations if isinstance(location, int)]
        known = self.batch_size is not None and len(axes) == len(locations)
        call = OperatorCall(func, args, kwargs, sources, axes if known else [0] * len(locations), self.batch_size or 0)
        rule = AXIS_RULES.get(func)
        written = main_argument(args, kwargs) if changes_in_place(func) else kwargs.get("out")
        for output_index, out in outputs:
            axis: BatchLocation = rule(call, out, output_index) if rule is not None and known else None
            if axis is None and self.batch_size and any(part is not None for part in locations):
                axis = follow_rows(call, locations, out, output_index, rule)
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
                if recipe and not isinstance(axis, int):
                    self._recipes[id(out)] = (weakref.ref(out), recipe)

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
            return None if form is None else digest(self._identities.of(call.first), form)
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
        if not isinstance(value, Tensor) or not self.descends(value):
            return
        axis: BatchLocation = self._axis_after_write(target, index, value)
        if axis is None and self.location(value) is not None:
            axis = self._of_the_only_one(target)
        self._overwritten(target, axis, "__setitem__")

    def _axis_after_write(self, target: Tensor, index: Any, value: Tensor) -> Axis:
        value_axis, size = self.get(value), self.batch_size
        if value_axis is None or size is None:
            return None
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

    def _overwritten(self, tensor: Tensor, axis: BatchLocation, name: str) -> None:
        if not tensor.numel():
            return
        if self.recipe(tensor) is not None or (isinstance(axis, Whole) and self.batch_size != 1):
            axis = None  # what else shares its memory would have changed with it
        if axis is None and (self.get(tensor) is not None or self._is_seen_elsewhere(tensor)):
            raise _mixed(tensor, name)
        base = base_of(tensor)
        if base is not None and base is not tensor and not self.descends(tensor):
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
        """Whether a tensor is a view, and its memory that of another one whose examples can be told apart."""
        if base_of(tensor) is None or tensor.layout != torch.strided:
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


def _mixed(tensor: Tensor, name: str) -> PrivacyUnitError:
    return PrivacyUnitError(
        f"changes a tensor of shape {list(tensor.shape)} in place, so that the examples of the batch can no longer be "
        f"told apart in it",
        where=name,
        cure="Make a new tensor, and keep the batch on an axis of its own; or let each item hold one example only: "
        "max_physical_batch_size=1" + EXPERTS * name.startswith(BY_EXPERT),
    )


def _bounds_bags(tensor: Tensor, batch_size: int | None) -> bool:
    """Whether a tensor may hold where each of B bags begins, and where the last one ends."""
    return batch_size is not None and tensor.shape == (batch_size + 1,) and tensor.dtype in (torch.int32, torch.int64)


def _tensors_at_top(result: Any) -> list[tuple[int, Tensor]]:
    """Return the tensors that an operator returned, with their indices among its outputs."""
    if isinstance(result, Tensor):
        return [(0, result)]
    if not isinstance(result, (tuple, list)):
        return []
    return [(index, part) for index, part in enumerate(result) if isinstance(part, Tensor)]


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
