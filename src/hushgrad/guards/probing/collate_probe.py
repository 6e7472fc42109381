"""Does one record's row depend on another record? `collate_fn` is asked again with some of its records exchanged.

What a collate function may do is pad, put records end to end, and put them in another order: rows may become longer or
shorter with the longest record, and what says where records begin follows those before. What lies beyond a record's own
values must then be one constant. Where the order changes, each record's row must be what it is when it comes alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hushgrad.capture.axes.layout import MARKS, Path, Role, layout_of, mark_candidates
from hushgrad.errors import BatchStructureError, CrossSampleLeakError, HushgradError, where_raised
from hushgrad.guards.probing.collate_contents import are_same, contents_at, first_other_content
from hushgrad.guards.probing.collate_drawn_rows import first_difference_drawn
from hushgrad.guards.probing.collate_draws import AS_DRAWN, QUIET, Draws
from hushgrad.guards.probing.collate_rows import rows_agree_but_for_padding
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.collate_state import require_still
from hushgrad.guards.probing.lifting import end_to_end
from hushgrad.guards.probing.rows import rows_agree
from hushgrad.guards.probing.trees import parts_of, tensors_at

RECORDS = 6
"""How many records a probe looks at, at most."""

CURE = (
    "Make each row from one example alone, padded by a constant, and cut by no other; mix and normalise nothing over "
    "the batch. A record's length belongs into the batch as it is, and no quotient of lengths. Records may be put into "
    "another order, or end to end with offsets, a vector of owners or bounds, all parts of a record in the same way"
)


@dataclass(frozen=True)
class Form:
    """What a batch of a collate function is made of.

    Attributes:
        axes: the axis of the records in each tensor that has one.
        lists: the paths of lists with an entry for each record.
        roles: what its parts hold where several roles would fit.
        reorders: whether records come in another order than they were drawn in.
    """

    axes: dict[Path, int] = field(default_factory=dict)
    lists: frozenset[Path] = frozenset()
    roles: dict[Path, Role] = field(default_factory=dict)
    reorders: bool = False


def require_separate_rows(runs: CollateRuns, records: Sequence[Any]) -> Form | None:
    """Refuse a collate function that lets one record change another one's row, or keeps what follows the records.

    Every other record is replaced by a copy of its neighbour and then left out; the rows of the kept ones must not
    change beyond their padding. Leaves without a row for each record are compared only where they are floating.

    Args:
        runs: of the function; it runs at most nine times, and some more where what it keeps has changed, or where it
            changes the order of records.
        records: at least two. They are copied, so nothing is done to them. Those with values that are not finite are
            left out, since one of them could make all rows alike; where all have such, they are taken as they are.

    Returns the form of the batch; None where nothing could be told, of a single record that is finite.

    Raises:
        CrossSampleLeakError: naming the part of the batch, or the place of what is kept.
        BatchStructureError: it fails on some of the records.
    """
    finite = [record for record in records if is_finite(record)]
    if len(finite) == 1:
        return None
    records = finite or records
    refusal: _AmbiguousError | None = None
    try:
        # Two sets of rows may be as many by chance, but not beside fewer others, or with the first two exchanged.
        for some in (*(records[:count] for count in range(len(records), 1, -1)), records[1::-1]):
            try:
                return _form(runs, some)
            except _AmbiguousError as error:
                refusal = error
        assert refusal is not None
        raise CrossSampleLeakError(refusal.what, where=refusal.where, cure=refusal.cure) from None
    except (HushgradError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise BatchStructureError(
            f"made the batch and fails on some of its records alone ({where_raised(error)}), so that it cannot be "
            f"examined",
            where=runs.place,
            cure="Let it take any records in any number, and return a row for each: draws of any size come",
        ) from None


class _AmbiguousError(CrossSampleLeakError):
    """Records have other rows beside others, as far as it can be told where they begin."""


def _form(runs: CollateRuns, records: Sequence[Any]) -> Form:
    """Return the form of a batch of some records; as `require_separate_rows`."""
    size = len(records)
    kept = [row for row in range(size) if row % 2 == 0]
    exchanged = [records[row] if row % 2 == 0 else records[row - 1] for row in range(size)]
    fewer = [records[row] for row in kept]
    require_still(runs, records, exchanged, kept)
    refusal: HushgradError | None = None
    batch = runs.run(records).batch
    lists = frozenset(_row_lists(batch, runs.run(fewer).batch, size, len(fewer)))
    for roles in _ways(batch, size, lists):
        rows = Rows(runs, records, fewer, roles)
        try:
            for changed, there in ((exchanged, kept), (fewer, list(range(len(kept))))):
                rows.require_same(changed, kept, there, "were exchanged or left out")
            # What sorts shows it in one of two orders, whatever order the records have.
            if not runs.has_drawn:  # numbers for a whole batch follow the place
                rows.require_same(list(records)[::-1], kept, [size - 1 - row for row in kept], "came in another order")
            return rows.form()
        except CrossSampleLeakError as error:
            refusal = refusal or error
    assert refusal is not None
    if not lists and not any(size in part.shape for _, part in tensors_at(batch)):
        raise CrossSampleLeakError(
            f"makes no row for each of {size} records (it drops some, or joins them), so that none can be told apart",
            where=runs.place,
            cure="Return a row for each record: leave unusable ones out of the dataset (torch.utils.data.Subset), or "
            "give them a row of zeros and a loss of 0",
        )
    batches = [(runs.run(part).batch, len(part)) for part in (records, exchanged, fewer)]
    if _fits_by_chance(batches, lists) or any(is_ambiguous(made, count, lists) for made, count in batches):
        raise _AmbiguousError(refusal.what, where=refusal.where, cure=refusal.cure) from refusal
    raise refusal


def _ways(batch: Any, size: int, lists: Collection[Path]) -> Iterator[dict[Path, Role]]:
    """Yield what tensors may be: as it seems, then with each that may say where records begin as the only one.

    Labels in order look like such a tensor. What is said once holds for all batches that are compared.
    """
    tensors = [(path, part) for path, part in tensors_at(batch) if part.ndim and not _is_in(path, lists)]
    roles = layout_of(tensors, size).roles
    fixed = {path: role for path, role in roles.items() if role in MARKS or role is Role.FIRST}
    if any(role in MARKS for role in roles.values()):
        yield fixed
    candidates = mark_candidates(tensors, size)
    for path, kind in candidates:
        yield {**fixed, **{other: Role.FIRST for other, _ in candidates if other != path}, path: kind}
    yield {path: Role.FIRST for path, part in tensors if part.shape[0] == size}


def is_ambiguous(batch: Any, size: int, lists: Collection[Path]) -> bool:
    """Return whether it is said in two ways where records begin in as many rows: of two sets of rows, by chance."""
    tensors = [(path, part) for path, part in tensors_at(batch) if part.ndim and not _is_in(path, lists)]
    kinds = [kind for _, kind in mark_candidates(tensors, size)]
    return not layout_of(tensors, size).counts and sum(kind is not Role.STARTS for kind in kinds) > 1


def _fits_by_chance(batches: Sequence[tuple[Any, int]], lists: Collection[Path]) -> bool:
    """Return whether a part of which rows lie end to end has as many rows as there are records in another batch."""
    roles = [
        layout_of(
            [(path, part) for path, part in tensors_at(made) if part.ndim and not _is_in(path, lists)], size
        ).roles
        for made, size in batches
    ]
    at_paths = [{found.get(path) for found in roles} for path in set().union(*roles)]
    return any(Role.FIRST in found and not found.isdisjoint((Role.FLAT, Role.LOST)) for found in at_paths)


def is_finite(record: Any) -> bool:
    """Return whether all numbers in a record are finite."""
    if isinstance(record, Mapping):
        return all(map(is_finite, record.values()))
    if isinstance(record, (tuple, list)):
        return all(map(is_finite, record))
    if isinstance(record, (np.ndarray, np.generic)):
        return not np.issubdtype(record.dtype, np.inexact) or bool(np.isfinite(record).all())
    if isinstance(record, Tensor):
        return bool(record.isfinite().all())
    return not isinstance(record, float) or math.isfinite(record)


class Rows:
    """A batch of records, beside which others are held: the same records must have the same rows in both.

    Args:
        runs: of the function that makes the batches.
        records: of the batch.
        fewer: some of them; what has a row for each record is told by what this changes.
        roles: what the parts of the batch hold, as far as it is known.
    """

    def __init__(
        self, runs: CollateRuns, records: Sequence[Any], fewer: Sequence[Any], roles: Mapping[Path, Role] | None = None
    ) -> None:
        self._runs = runs
        self._records, self._fewer = records, fewer
        self._roles = dict(roles or {})
        self._made: dict[Draws, tuple[Any, Any]] = {}
        self._alone: dict[tuple[int, Draws], Any] = {}
        self._reorders = False

    def require_same(
        self, changed: Sequence[Any], kept: Sequence[int], there: Sequence[int], what: str, *, alone: bool = False
    ) -> None:
        """Refuse a function that gives records other rows beside others.

        Args:
            changed: records of another batch.
            kept, there: the places of the same records in the first and in this one.
            what: what was done to the others, for messages.
            alone: whether there are none in `changed`, so that nothing can have cut these.

        Raises:
            CrossSampleLeakError: naming the part of the batch.
        """
        found = self._first_difference(changed, kept, there, alone, AS_DRAWN)
        if self._runs.has_drawn:
            compared = partial(self._compared, alone=alone)
            found = first_difference_drawn(self._runs, self._records, changed, kept, there, compared)
        elif found is not None:  # not because of random numbers, of which a padded batch draws more?
            found = self._compared(self._records, changed, kept, there, QUIET, alone=alone, may_reorder=True)
        if found is not None:
            raise CrossSampleLeakError(
                f"mixes examples: rows of others changed in {_called(found)} of the batch when some examples {what}",
                where=self._runs.place,
                cure=CURE,
            )

    def form(self) -> Form:
        """Return what the batch is made of."""
        whole, less = self._both(QUIET)
        sizes = len(self._records), len(self._fewer)
        flat = {path for path, _ in tensors_at(whole) if path and path[-1] in ("padded", "counts", "targets")}
        axes = {path: axis for path, axis in grown(whole, less, *sizes).items() if path not in flat}
        lists = frozenset(_row_lists(whole, less, *sizes))
        _, roles = end_to_end(self._runs.run(self._records, QUIET).batch, len(self._records), self._roles)
        return Form(axes, lists, {**self._roles, **roles}, self._reorders)

    def _run(self, records: Sequence[Any], draws: Draws) -> Any:
        """Return a batch with a row for each record also where these lie end to end."""
        return self._lifted(self._runs.run(records, draws).batch, len(records))

    def _lifted(self, batch: Any, size: int) -> Any:
        return end_to_end(batch, size, self._roles)[0]

    def _both(self, draws: Draws) -> tuple[Any, Any]:
        if draws not in self._made:
            whole, less = (self._runs.run(records, draws).batch for records in (self._records, self._fewer))
            sizes = len(self._records), len(self._fewer)
            self._roles.update(dict.fromkeys(_row_lists(whole, less, *sizes), Role.ENTRIES))
            self._made[draws] = self._lifted(whole, sizes[0]), self._lifted(less, sizes[1])
        return self._made[draws]

    def _compared(
        self,
        records: Sequence[Any],
        changed: Sequence[Any],
        kept: Sequence[int],
        there: Sequence[int],
        draws: Draws,
        *,
        alone: bool,
        may_reorder: bool = False,
    ) -> Path | None:
        """Return where rows of some records differ, unless these have other places only and may have."""
        rows = self if records is self._records else Rows(self._runs, records, records[:-1], self._roles)
        found = rows._first_difference(changed, kept, there, alone, draws)
        if found is None or not may_reorder or not rows._has_only_reordered(changed, kept, there, alone, draws):
            return found
        self._reorders = True
        return None

    def _first_difference(
        self, changed: Sequence[Any], kept: Sequence[int], there: Sequence[int], alone: bool, draws: Draws
    ) -> Path | None:
        whole, less = self._both(draws)
        other = less if changed is self._fewer else self._run(changed, draws)
        sizes = len(self._records), len(self._fewer)
        lists = set(_row_lists(whole, less, *sizes))
        axes = {path: axis for path, axis in grown(whole, less, *sizes).items() if not _is_in(path, lists)}
        found = _first_other_entry(whole, other, lists, kept, there)
        if found is not None:
            return found
        leaves = dict(tensors_at(other))
        for path, one in tensors_at(whole):
            if _is_in(path, lists):
                continue
            two = leaves.get(path)
            if two is None or one.ndim != two.ndim or one.dtype != two.dtype:
                return path
            if path in axes:  # a row for each record
                axis = axes[path]
                before, after = one.movedim(axis, 0)[list(kept)], two.movedim(axis, 0)[list(there)]
                same = rows_agree_but_for_padding(before, after, whole=alone, noisy=draws.anew is not None)
            elif one.is_floating_point() and len(self._records) == len(changed):
                same = one.shape != two.shape or rows_agree(one, two)  # a statistic of the batch
            else:
                same = True  # a length, say, which may be used for what it is
                is_size = one.ndim == 0 and (int(one.real), int(two.real)) == (len(self._records), len(changed))
                if not self._runs.has_drawn and not is_size and not torch.equal(one, two):
                    self._runs.statistics.add(path)
            if not same:
                return path
        if len(self._records) == len(changed):
            return _first_other_content(self._runs, whole, other, lists)
        return None

    # In another order ------------------------------------------------------------------------------------------------

    def _has_only_reordered(
        self, changed: Sequence[Any], kept: Sequence[int], there: Sequence[int], alone: bool, draws: Draws
    ) -> bool:
        """Whether records have other places only: each one's row is that which it has alone, and the same in both."""
        first, second = self._places(self._records, draws), self._places(changed, draws)
        if first is None or second is None:
            return False
        one, two = [first[record] for record in kept], [second[record] for record in there]
        return self._first_difference(changed, one, two, alone, draws) is None

    def _places(self, records: Sequence[Any], draws: Draws) -> list[int] | None:
        """Return the row of each record in a batch, where all rows are those that records have alone; else None."""
        whole, less = self._both(draws)
        sizes = len(self._records), len(self._fewer)
        lists = set(_row_lists(whole, less, *sizes))
        axes = {path: axis for path, axis in grown(whole, less, *sizes).items() if not _is_in(path, lists)}
        batch = whole if records is self._records else self._run(records, draws)
        if (not axes and not lists) or (
            len(records) == len(self._records) and not _same_statistics(whole, batch, axes)
        ):
            return None
        try:
            alone = {id(record): self._of_one(record, draws) for record in records}  # one may come many times
            found = {
                key: [_is_row_of(batch, row, one, axes, lists) for row in range(len(records))]
                for key, one in alone.items()
            }
            fits = [found[id(record)] for record in records]
        except HushgradError:
            raise
        except Exception:  # a record of which no batch can be made alone, or other rows than there are records
            return None
        return _assigned(fits)

    def _of_one(self, record: Any, draws: Draws) -> Any:
        if (id(record), draws) not in self._alone:
            self._alone[id(record), draws] = self._run([record], draws)
        return self._alone[id(record), draws]


def _same_statistics(one: Any, two: Any, axes: Mapping[Path, int]) -> bool:
    """Whether what has no row for each record, and is floating, is the same in two batches."""
    there = dict(tensors_at(two))
    others = [(path, part) for path, part in tensors_at(one) if path not in axes and part.is_floating_point()]
    return all(
        path in there and part.shape == there[path].shape and rows_agree(part, there[path]) for path, part in others
    )


def _is_row_of(batch: Any, row: int, alone: Any, axes: Mapping[Path, int], lists: Collection[Path]) -> bool:
    """Whether all parts of a row are those of the one record of another batch."""
    here, there = dict(tensors_at(batch)), dict(tensors_at(alone))
    for path, axis in axes.items():
        one, two = here[path].movedim(axis, 0)[row : row + 1], there[path].movedim(axis, 0)
        if len(two) != 1 or one.ndim != two.ndim or one.dtype != two.dtype:
            return False
        if not rows_agree_but_for_padding(one, two, whole=True):
            return False
    return _first_other_entry(batch, alone, lists, [row], [0]) is None


def _assigned(fits: Sequence[Sequence[bool]]) -> list[int] | None:
    """Return a row for each record, of its own, among those that fit it; None where there are not enough."""
    owner: dict[int, int] = {}

    def assign(record: int, seen: set[int]) -> bool:
        for row, does_fit in enumerate(fits[record]):
            if does_fit and row not in seen:
                seen.add(row)
                if row not in owner or assign(owner[row], seen):
                    owner[row] = record
                    return True
        return False

    if not all(assign(record, set()) for record in range(len(fits))):
        return None
    return sorted(owner, key=owner.__getitem__)


def grown(whole: Any, fewer: Any, size: int, less: int) -> dict[Path, int]:
    """Return for each tensor the first axis of `size` that has `less` with so many records."""
    there = dict(tensors_at(fewer))
    axes = {}
    for path, one in tensors_at(whole):
        two = there.get(path)
        if two is not None and one.ndim == two.ndim:
            places = [n for n in range(one.ndim) if (one.shape[n], two.shape[n]) == (size, less)]
            if places:
                axes[path] = places[0]
    return axes


def _row_lists(whole: Any, fewer: Any, size: int, less: int, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of lists that have an entry for each record."""
    if type(whole) in (list, tuple) and type(fewer) is type(whole) and (len(whole), len(fewer)) == (size, less):
        yield path
    elif type(whole) is type(fewer) and not isinstance(whole, Tensor):
        one, two = dict(parts_of(whole)), dict(parts_of(fewer))
        if isinstance(whole, Mapping) or one.keys() == two.keys():
            for key in [key for key in one if key in two]:
                yield from _row_lists(one[key], two[key], size, less, (*path, key))


def _first_other_entry(
    whole: Any, other: Any, lists: Collection[Path], kept: Sequence[int], there: Sequence[int]
) -> Path | None:
    """Return the path of a list whose entries of kept records changed."""
    for path in lists:
        one, two = _at(whole, path), _at(other, path)
        if two is None or len(two) <= max(there):
            return path
        for row, place in zip(kept, there, strict=True):
            before, after = dict(tensors_at(one[row])), dict(tensors_at(two[place]))
            if before.keys() != after.keys():
                return path
            for part, tensor in before.items():
                if tensor.shape != after[part].shape or not rows_agree(tensor, after[part]):
                    return path
            if first_other_content(one[row], two[place]) is not None:
                return path
    return None


def _first_other_content(runs: CollateRuns, one: Any, two: Any, lists: Collection[Path]) -> Path | None:
    """Return where two batches of as many records hold something else, of what is said once for all of them."""
    here, there = ({path: part for path, part in contents_at(batch) if not _is_in(path, lists)} for batch in (one, two))
    for path, part in here.items():
        runs.untold.update(dict.fromkeys(f"{said}, in {_called(path)} of a batch" for said in part.unread))
        if path not in there or not are_same(part, there[path]):
            return path
    return next((path for path in there if path not in here), None)


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = dict(parts_of(value)).get(key)
    return value


def _is_in(path: Path, lists: Collection[Path]) -> bool:
    return any(path[:length] in lists for length in range(len(path) + 1))


def _called(path: Path) -> str:
    return "part " + ".".join(str(key) for key in path) if path else "the tensor"
