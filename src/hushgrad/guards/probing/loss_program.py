"""A loop's program from an item of the loader to its losses: the calls that were seen, tensors by number."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hushgrad.guards.probing.constants import Constants, Origin
from hushgrad.guards.probing.flat_rows import FlatRows
from hushgrad.guards.probing.trees import Path


class Slot(NamedTuple):
    """A tensor of the program, by its number."""

    number: int


class Place(NamedTuple):
    """The line of the loop that made a call: the name of its file, without its folder.

    `numbers` stand in the code there. `is_criterions`: the call is made by a criterion that this library wrapped, which
    the loop calls in this line.
    """

    file: str
    line: int
    numbers: tuple[Any, ...] = ()
    is_criterions: bool = False

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True, eq=False)
class Made:
    """One call: its function and arguments, tensors as slots; what it made, and the settings it ran under.

    `taken`: the number (or numbers) that left torch by it, None where it made tensors. `places`: which of what an
    autograd function returned has which slot. `saving`: what of the loop's own packed and unpacked the
    tensors that it saved.
    """

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    outputs: tuple[int, ...]
    place: Place
    with_gradients: bool
    autocast: tuple[tuple[str, torch.dtype], ...]
    taken: Any = None
    places: tuple[tuple[int, int], ...] = ()
    saving: tuple[Any, Any] | None = None

    @property
    def name(self) -> str:
        """What the call is called in messages."""
        name = getattr(self.function, "__name__", "a call")
        if name == "apply":
            name = getattr(getattr(self.function, "__self__", None), "__name__", name)
        if name == "__get__":
            name = getattr(getattr(self.function, "__self__", None), "__name__", name)
        return str(name).strip("_")

    def __str__(self) -> str:
        return f"{self.name} {'of the criterion ' if self.place.is_criterions else ''}({self.place})"


class Source(NamedTuple):
    """A tensor that the program did not compute: its values then, and what it is."""

    values: Tensor
    version: int
    kind: str  # "item", "output", "earlier" (of an item before), "number" (made after numbers left torch), "constant"


@dataclass(eq=False)
class Earlier:
    """What a loop still has of the items before: tensors that were made of them, and numbers that left torch."""

    tensors: dict[int, weakref.ref[Tensor]] = field(default_factory=dict)
    numbers: set[float] = field(default_factory=set)
    constants: Constants = field(default_factory=Constants)

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor was made of an earlier item."""
        found = self.tensors.get(id(tensor))
        return found is not None and found() is tensor


class Given(NamedTuple):
    """Numbers that a forward was given, or found in the model's attributes: after how many calls, and where."""

    calls: int
    numbers: tuple[float, ...]
    place: Place

    def __str__(self) -> str:
        return f"the model's call ({self.place})"


class End(NamedTuple):
    """A loss, or losses, of the program: its slot, how many calls came before, and whether it has a row for each."""

    slot: int
    calls: int
    is_rows: bool


@dataclass(eq=False)
class Program:
    """The calls of one item.

    Attributes:
        size: B.
        calls: in order.
        sources: by slot.
        axes: of parts of the item, by slot, where the examples are on another axis than the first that fits.
        flat: the parts of the item whose rows lie end to end.
        entries: of tensors in lists with an entry for each example, in the item and in the model's inputs, by slot,
            whose they are.
        ends: the losses.
        inputs: the slots that the model was given, or has as buffers, of values computed from the item.
        given: the numbers that it was given.
        carried: where the model was given a tensor that was made of an earlier item.
        earlier: the numbers that left torch in earlier items.
        outputs: the slots of the model's outputs, by the keys under which they are known.
        paths: of parts of the item, by slot, where in it they are.
        made_by: of outputs, by slot, the module that made them, and where in what it returned they are.
        origins: of sources that no call on the batch has made, by slot, what they were made of.
        recipes: of those that were made of lengths of the item alone, by slot, how.
        placed: where the model was given a tensor with a row for each example that has nothing of the item.
        node_hooks: the loop's own, on nodes of the graph of its losses (`NodeHooks`).
        reached: by slot, the tensors that code of the loop's can read in its backward.
        read_backward: numbers that such code can read, and those in the code itself.
        calls_of_backward: how many calls came before the backward, where it reads what they made.
        alike: a row of those that the model was given and that have the same row for each example.
        numbers_outside: by which noise and parameters were scaled that enter it, and seeds of generators.
        seed: of torch, at the end; `sets_seed` whether the loop set it meanwhile.
        draws_in_python: whether Python's or NumPy's own random numbers were drawn meanwhile.
        reads_values: whether numbers of the examples left torch before the losses were made, as replays tell.
        doubt: which of them may have come back unseen.
        hidden: why it is not all of what the loop computed; "" if it is, as far as it shows.
    """

    size: int
    calls: list[Made] = field(default_factory=list)
    sources: dict[int, Source] = field(default_factory=dict)
    axes: dict[int, int] = field(default_factory=dict)
    flat: FlatRows = field(default_factory=FlatRows)
    entries: dict[int, int] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    carried: list[Place] = field(default_factory=list)
    earlier: frozenset[float] = frozenset()
    outputs: list[int] = field(default_factory=list)
    paths: dict[int, Path] = field(default_factory=dict)
    made_by: dict[int, tuple[nn.Module, Path]] = field(default_factory=dict)
    origins: dict[int, Origin] = field(default_factory=dict)
    recipes: dict[int, Callable[[Mapping[int, int]], Any]] = field(default_factory=dict)
    placed: list[Place] = field(default_factory=list)
    node_hooks: list[Any] = field(default_factory=list)
    reached: dict[int, list[Tensor]] = field(default_factory=dict)
    read_backward: list[tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=list)
    calls_of_backward: int = 0
    alike: list[Tensor] = field(default_factory=list)
    numbers_outside: frozenset[tuple[str, float]] = frozenset()
    seed: int = 0
    sets_seed: bool = False
    draws_in_python: bool = False
    hidden: str = ""
    reads_values: bool = False
    doubt: str = ""

    def hide(self, why: str) -> None:
        """Take note that not all of it is seen."""
        self.hidden = self.hidden or why

    @property
    def last(self) -> int:
        """How many calls came before the last loss."""
        return max((self.calls_of_backward if self.ends else 0, *(end.calls for end in self.ends)))


def cut_lengths(program: Program) -> set[int]:
    """Return the numbers in the loop's code up to which it takes the positions of a tensor (`ids[:, :128]`)."""
    found: set[int] = set()
    for call in program.calls:
        if call.name == "getitem" and len(call.args) > 1:
            places = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
            stops = {place.stop for place in places if isinstance(place, slice) and isinstance(place.stop, int)}
            found |= {stop for stop in stops if stop > 0 and stop in call.place.numbers}
    return found


def tensors_of(*values: Any) -> Iterator[Tensor]:
    """Yield the tensors among nested arguments, or of what a call returned, whatever kind of tuple that is."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_of(*value)
        elif isinstance(value, dict):
            yield from tensors_of(*value.values())


def slots_of(value: Any) -> list[Slot]:
    """Return the tensors among nested arguments, by number."""
    if isinstance(value, Slot):
        return [value]
    if type(value) in (tuple, list):
        return [slot for part in value for slot in slots_of(part)]
    return [slot for part in value.values() for slot in slots_of(part)] if isinstance(value, dict) else []


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested arguments with their parts changed; lists and dictionaries are copied."""
    if type(value) in (tuple, list):
        return type(value)([mapped(part, change) for part in value])
    if isinstance(value, dict):
        return {key: mapped(part, change) for key, part in value.items()}
    return change(value)
