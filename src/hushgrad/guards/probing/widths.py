"""How long one record is by itself, where batches are padded (or cut) to their longest record.

A model that sees padding (a mean over positions, a convolution, a last state, attention without a mask) gives a record
other outputs beside a longer one. So a short record is run alone at its own width, as it would come if no longer one
had been drawn with it, and must give what it gave in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hushgrad.capture.axes.layout import Layout, Role
from hushgrad.guards.probing.collate_rows import rows_agree_but_for_padding
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.contents import content_before_padding, contents, longest_contents
from hushgrad.guards.probing.layout import layout_in_item
from hushgrad.guards.probing.rows import Batch
from hushgrad.guards.probing.state import State
from hushgrad.guards.probing.trees import DESCEND, Path, tensors_at, with_parts

MOST_ROWS = 3
"""How many records are read once more to learn their own lengths, if one of them is shorter than the longest."""

MOST_READ = 32
"""How many are where none of those is, and the records do not all hold equally much."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """An item of a loader, and where it came from.

    Attributes:
        dataset: what was read.
        indices: of the records that were drawn; rows after them are padding.
        item: what the loop was handed.
        size: its number of rows.
        collate_fn: the caller's; None for torch's own, which pads nothing.
        lists: the paths of lists in the item that have an entry for each record.
        axes: of those tensors of the item whose records are not on axis 0, the axis on which they are.
        roles_known: what parts of the item hold, where several roles would fit.
        reorders: whether `collate_fn` puts records into another order than that of `indices`.
        extents: how much each record held before `collate_fn`; empty where that is not known.
        records: the records themselves, by their index, where they cannot be read again (a stream's).
        statistics: the paths of whole numbers and flags in the item that follow other records.
        pass_index: the number of the pass over the loader, from 0.
    """

    dataset: Any
    indices: Sequence[int]
    item: Any
    size: int
    collate_fn: Callable[[list[Any]], Any] | None
    axes: Mapping[Path, int] = field(default_factory=dict)
    lists: Set[Path] = frozenset()
    roles_known: Mapping[Path, Role] = field(default_factory=dict)
    reorders: bool = False
    extents: Sequence[int] = ()
    records: Mapping[int, Any] | None = None
    statistics: Set[Path] = frozenset()
    pass_index: int = 0

    def record(self, row: int) -> Any:
        """Return the record of a row, read once more."""
        index = self.indices[row]
        return self.dataset[index] if self.records is None else self.records[index]

    @cached_property
    def second_lengths(self) -> frozenset[int]:
        """The lengths of the second axes of the item's parts."""
        return frozenset(tensor.shape[1] for _, tensor in tensors_at(self.item) if tensor.ndim > 1)

    @cached_property
    def layout(self) -> Layout:
        """How the item holds the records."""
        return layout_in_item(self.item, self.size, self.axes, self.lists, self.roles_known)

    @property
    def roles(self) -> dict[Path, Role]:
        """What the parts of the item hold."""
        return {**self.layout.roles, **dict.fromkeys(self.lists, Role.ENTRIES)}

    @cached_property
    def widths(self) -> list[OwnWidth]:
        """The own lengths of a few records, which are read once more; of lists of records all are known."""
        return _from_records(self, min(len(self.indices), self.size))

    @property
    def short_records(self) -> list[OwnWidth]:
        """Those of records that are shorter than the longest."""
        return _shorter(self.widths)


@dataclass(frozen=True, eq=False)
class OwnWidth:
    """One record's own lengths.

    Attributes:
        row: its number in the batch.
        lengths: for lengths of axes in the batch, those that the record has when it comes alone.
        alone: the tensors of the item that is made of it alone, by their paths; none where that was not made.
        is_sure: whether the lengths come from the records themselves, and are no guess.
        shift: how many positions the loop's own shift (`ids[:, :-1]`) took from each record where an axis is one
            shorter than in the item; 0 if it cut the longest record alone.
    """

    row: int
    lengths: Mapping[int, int]
    alone: Mapping[Path, Tensor]
    is_sure: bool
    shift: int = 1

    def of(self, length: int) -> int:
        """Return the record's own length of an axis; one that is one shorter was shifted by the loop, or cut."""
        if length in self.lengths:
            return self.lengths[length]
        return max(1, self.lengths[length + 1] - self.shift) if length + 1 in self.lengths else length

    def is_alone(self, row: Tensor, *, shifts: bool = False) -> bool:
        """Return whether the record alone makes this row of some tensor, or one with a position less if it `shifts`."""
        made = [part[0] for part in self.alone.values() if part.ndim > 1]
        if shifts:
            made = [some for one in made for some in (one[:-1], one[1:])]
        return any(one.shape == row.shape and torch.equal(one, row.to(one.device)) for one in made)


def own_widths(drawn: Drawn | None, batch: Batch, varying: Set[int]) -> list[OwnWidth]:
    """Return the own lengths of a few records that are shorter than the longest of their batch, the shortest first.

    Args:
        drawn: the item; None where there is no loader.
        batch: what the model was given for it, with tensors for all that holds the batch.
        varying: lengths of axes that were others in earlier batches.
    """
    count = batch.size if drawn is None else min(len(drawn.indices), batch.size)
    shorter = [] if drawn is None else drawn.short_records
    if not shorter:
        guessed = _guessed(drawn, batch, varying - _whole(drawn), count)
        shorter = _shorter(OwnWidth(row, lengths, {}, False) for row, lengths in guessed)
    else:
        cuts = _cut_lengths(drawn, batch)
        shorter = [replace(width, lengths={**width.lengths, **_cut_widths(width, cuts)}) for width in shorter]
    shorter.sort(key=lambda width: min(own / length for length, own in width.lengths.items()))
    return [*shorter[:1], *shorter[-1:]] if len(shorter) > 1 else shorter


def telling_rows(drawn: Drawn, most: int) -> list[int]:
    """Return some rows of an item: the longest, the shortest, those with the largest and the rarest value among them.

    How long a record is, is told by what it held before it was collated; where all held as much, by what the item
    shows of it before its padding. The second and fourth are those that a probe exchanges and leaves out.
    """
    count = len(drawn.indices)
    held = [tensor for _, tensor in tensors_at(drawn.item) if tensor.ndim and tensor.shape[0] >= count]
    held = [tensor[:count] for tensor in held if tensor.numel() and not tensor.is_complex()]
    largest, rarest, lengths = np.zeros(count), np.full(count, count), np.array(drawn.extents[:count], dtype=float)
    if len(set(lengths)) < 2:
        lengths = longest_contents(held, count)
    for tensor in held:
        sizes = tensor.detach().reshape(count, -1).double().abs().nan_to_num(0.0, 0.0, 0.0).amax(1)
        largest = np.maximum(largest, sizes.cpu().numpy())
        if tensor.ndim == 1 and not tensor.is_floating_point():
            _, places, counts = torch.unique(tensor, return_inverse=True, return_counts=True)
            rarest = np.minimum(rarest, counts[places].cpu().numpy())
    special = dict.fromkeys([int(largest.argmax()), int(lengths.argmax()), int(lengths.argmin()), int(rarest.argmin())])
    others = [row for row in range(count) if row not in special]
    rows = []
    for row in special:
        rows += [*others[:1], row]
        others = others[1:]
    return [*rows, *others][:most]


def _cut_lengths(drawn: Drawn | None, batch: Batch) -> dict[int, int]:
    """Return for lengths of inputs that are the beginning of a part of the item, by more than a shift, that part's."""
    found: dict[int, int] = {}
    items = [] if drawn is None else [tensor for _, tensor in tensors_at(drawn.item) if tensor.ndim > 1]
    for path, tensor in tensors_at(batch.value):
        for item in items if batch.axes.get(path) == 0 and tensor.ndim > 1 else ():
            length = tensor.shape[1]
            is_like = item.shape[:1] + item.shape[2:] == tensor.shape[:1] + tensor.shape[2:]
            if is_like and length < item.shape[1] - 1 and torch.equal(item[:, :length].to(tensor), tensor.detach()):
                found[length] = item.shape[1]
    return found


def _cut_widths(width: OwnWidth, cuts: Mapping[int, int]) -> dict[int, int]:
    """Return a record's own lengths of what the loop cut to a constant, where they are shorter."""
    own = {length: width.lengths.get(whole, length) for length, whole in cuts.items() if length not in width.lengths}
    return {length: shorter for length, shorter in own.items() if shorter < length}


def _shorter(widths: Iterable[OwnWidth]) -> list[OwnWidth]:
    """Return those of records that are shorter than the longest of their batch."""
    return [width for width in widths if any(own < length for length, own in width.lengths.items())]


# Records read once more ---------------------------------------------------------------------------------------------


def _from_records(drawn: Drawn, count: int) -> list[OwnWidth]:
    if drawn.collate_fn is None:
        return []
    listed = list(_lengths_of_lists(drawn, count))
    if listed:
        return [OwnWidth(row, lengths, {}, True) for row, lengths in listed]
    found = []
    runs = CollateRuns(drawn.collate_fn, State(drawn.collate_fn, parameters=False, aside=drawn.dataset))
    for row, alone in _some_alone(drawn, runs, count):
        lengths: dict[int, int] = {}
        for path, tensor in tensors_at(drawn.item):
            other = alone.get(path)
            if other is None or other.ndim != tensor.ndim:
                continue
            of_batch = next(
                (n for n in (0, 1) if n < tensor.ndim and tensor.shape[n] == drawn.size * other.shape[n]), -1
            )
            for axis in range(tensor.ndim):
                length, own = tensor.shape[axis], other.shape[axis]
                if axis != of_batch and own not in (0, length):
                    lengths[length] = max(own, lengths.get(length, 0))
        if alone:
            found.append(OwnWidth(row, lengths, alone, True))
        is_even = len(drawn.extents) >= count and len(set(drawn.extents[:count])) == 1
        if len(found) >= MOST_ROWS and (is_even or _shorter(found)):
            break
    return found


def _whole(drawn: Drawn | None) -> set[int]:
    """Return lengths that need no guessing: the records that seem to be short have them when they come alone."""
    if drawn is None or not drawn.widths:
        return set()
    alone = [width.alone.values() for width in drawn.widths]
    return set.intersection(*({length for tensor in tensors for length in tensor.shape} for tensors in alone))


def _some_alone(drawn: Drawn, runs: CollateRuns, count: int) -> Iterator[tuple[int, dict[Path, Tensor]]]:
    """Yield rows, and what the record of each makes alone; those of the records that held least come first."""
    if not drawn.reorders:
        rows = _telling(drawn.item, count)
        if len(drawn.extents) >= count and len(set(drawn.extents[:count])) > 1:
            rows.sort(key=lambda row: drawn.extents[row])
        yield from ((row, _alone(drawn, runs, row)) for row in rows[:MOST_READ])
        return
    records = sorted(range(count), key=lambda record: drawn.extents[record] if drawn.extents else record)
    for record in records[:MOST_ROWS]:
        alone = _alone(drawn, runs, record)
        row = next((row for row in range(count) if _is_row(drawn, row, alone)), None)
        if row is not None:
            yield row, alone


def _is_row(drawn: Drawn, row: int, alone: Mapping[Path, Tensor]) -> bool:
    """Whether a row of the item is what a record makes alone, but for padding."""
    for path, tensor in tensors_at(drawn.item):
        axis = drawn.axes.get(path)
        if axis is None or path not in alone:
            continue
        one, two = tensor.movedim(axis, 0)[row : row + 1], alone[path].movedim(axis, 0)
        if one.ndim != two.ndim or one.dtype != two.dtype or not rows_agree_but_for_padding(one, two, whole=True):
            return False
    return bool(drawn.axes)


def _alone(drawn: Drawn, runs: CollateRuns, row: int) -> dict[Path, Tensor]:
    try:
        return dict(tensors_at(runs.run([drawn.record(row)]).batch))
    except Exception:  # a record that cannot be read again, or that no item can be made of alone
        return {}


def _lengths_of_lists(drawn: Drawn, count: int) -> Iterator[tuple[int, dict[int, int]]]:
    """Yield `(row, lengths)` for lists with an entry of its own length for each record."""
    found: list[dict[int, int]] = [{} for _ in range(count)]

    def visit(path: Path, part: Any) -> Any:
        if path in drawn.lists and len(part) == count and count > 1:
            entries = [dict(_lengths(entry)) for entry in part]
            for key in entries[0]:
                own = [entry.get(key, 0) for entry in entries]
                if min(own) and max(own) != min(own):
                    for row in range(count):
                        found[row][max(own)] = max(1, own[row])
        return part if isinstance(part, (Tensor, np.ndarray)) else DESCEND

    with_parts(drawn.item, visit)
    yield from ((row, lengths) for row, lengths in enumerate(found) if lengths)


def _lengths(value: Any, path: Path = ()) -> Iterator[tuple[tuple[Path, int], int]]:
    """Yield `((path, axis), length)` of the tensors, arrays and lists of numbers in a record."""
    if isinstance(value, (Tensor, np.ndarray)):
        yield from (((path, axis), length) for axis, length in enumerate(value.shape))
    elif isinstance(value, (list, tuple)) and value and all(isinstance(part, (int, float)) for part in value):
        yield (path, 0), len(value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _lengths(part, (*path, key))
    elif isinstance(value, (list, tuple)):
        for key, part in enumerate(value):
            yield from _lengths(part, (*path, key))


def _telling(item: Any, count: int) -> list[int]:
    """Return rows, those first that seem to be the shortest."""
    scores = np.zeros(count)
    for _, tensor in tensors_at(item):
        if tensor.ndim >= 2 and tensor.shape[0] >= count and tensor.shape[1]:
            scores = np.maximum(scores, 1 - contents(tensor)[:count] / tensor.shape[1])
            scores = np.maximum(scores, 1 - contents(tensor.flip(1))[:count] / tensor.shape[1])
    return [int(row) for row in np.argsort(-scores, kind="stable")]


# Lengths that are guessed -------------------------------------------------------------------------------------------


def _guessed(drawn: Drawn | None, batch: Batch, varying: Set[int], count: int) -> Iterator[tuple[int, dict[int, int]]]:
    """Yield lengths that explain an axis which follows the longest record, or which the loop cut to it."""
    taken = [tensor for path, tensor in tensors_at(batch.value) if path in batch.axes]
    item = taken if drawn is None else [tensor for _, tensor in tensors_at(drawn.item)]
    given = {length for tensor in item for length in tensor.shape[1:]}
    inner = {
        tensor.shape[place]
        for path, tensor in tensors_at(batch.value)
        if path in batch.axes
        for place in range(tensor.ndim)
        if place != batch.axes[path]
    }
    cut, followed = inner - given, inner & varying
    for tensor in item if cut else ():  # what the loop cut was longer, and padded
        if tensor.ndim > 1 and tensor.shape[0] >= count:
            own = contents(tensor)[:count]
            if int(own.max()) in cut and int(own.max()) < tensor.shape[1]:
                yield from _rows_of(own)
                return
    told = [tensor[:count] for tensor in (*item, *taken) if tensor.ndim and tensor.shape[0] >= count and tensor.numel()]
    for length in followed:
        own = _longest(
            [content_before_padding(tensor) for tensor in told if tensor.ndim > 1 and tensor.shape[1] == length]
        )
        numbers = [tensor for tensor in told if tensor.ndim == 1 and not tensor.is_floating_point()]
        for lengths in (own, *(tensor.cpu().numpy() for tensor in numbers)):
            if len(lengths) and int(lengths.max()) == length > lengths.min():
                yield from _rows_of(lengths)
                return


def _longest(lengths: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.max(lengths, 0) if lengths else np.zeros(0)


def _rows_of(own: np.ndarray[Any, Any]) -> Iterator[tuple[int, dict[int, int]]]:
    if 1 <= own.min() < own.max():
        yield from ((row, {int(own.max()): int(length)}) for row, length in enumerate(own))
