"""Are the rows of a collate function that draws random numbers outside of torch the same beside other records?

They are asked for under several sequences of numbers (see `Taken`). Under each, a record's row must be the same where
it stands, or as the first of its batch: what is drawn row by row for a whole batch is the same there, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from hushgrad.capture.axes.layout import Path
from hushgrad.guards.probing.collate_draws import Draws, sequences
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.trees import tensors_at
from hushgrad.sampling.extent import extent_of

MOST_IN_FRONT = 2
"""So many records are put in front, one after the other."""

UNTOLD = (
    "whether rows of the batch follow how many records there are and how long the longest is, since collate_fn draws "
    "random numbers outside of torch, several times for a whole batch"
)


class Compared(Protocol):
    """Returns where rows of the same records differ in two batches, None where they do not."""

    def __call__(
        self,
        records: Sequence[Any],
        changed: Sequence[Any],
        kept: Sequence[int],
        there: Sequence[int],
        draws: Draws,
        *,
        may_reorder: bool = False,
    ) -> Path | None:
        """Compare the rows `kept` of the first with the rows `there` of the second, in other places if they may be."""


def first_difference_drawn(
    runs: CollateRuns,
    records: Sequence[Any],
    changed: Sequence[Any],
    kept: Sequence[int],
    there: Sequence[int],
    compared: Compared,
) -> Path | None:
    """Return where rows of the same records differ, whatever numbers were drawn; None where they do not.

    Numbers that are drawn several times for a whole batch fall to other rows where batches are of other shapes. Then
    records are compared in batches of one shape, and what that leaves open is untold.

    Args:
        runs: of the function.
        records, changed: of the two batches.
        kept, there: the places of the same records in both.
        compared: compares two batches.
    """
    for draws in sequences(runs.turn):
        if compared(records, changed, kept, there, draws) is None:
            continue
        found = _difference_in_front(runs, records, changed, kept, there, compared, draws)
        if found is not None and compared(records, changed, kept, there, draws, may_reorder=True) is not None:
            return found
    return None


def _difference_in_front(
    runs: CollateRuns,
    records: Sequence[Any],
    changed: Sequence[Any],
    kept: Sequence[int],
    there: Sequence[int],
    compared: Compared,
    draws: Draws,
) -> Path | None:
    for row, place in list(zip(kept, there, strict=True))[:MOST_IN_FRONT]:
        # The other way round, or some of the companions would be the same ones in the same places.
        first = [records[row], *_without(records, row)]
        second = [changed[place], *_without(changed, place)[::-1]]
        found = compared(first, second, [0], [0], draws)
        if found is None:
            continue
        longest = max((*records, *changed), key=extent_of)
        if _have_same_shapes(runs, first, second, draws):
            return found
        if not runs.draws_for_batches and _is_aligned(runs.turn, (records[row], longest), first, second, compared):
            return found
        runs.draws_for_batches = True
        if len(records) == len(changed):
            first, second = [*first, longest], [*second, longest]
            found = compared(first, second, [0], [0], draws)
            if found is not None and _have_same_shapes(runs, first, second, draws):
                return found
        runs.untold[UNTOLD] = None
    return None


def _without(records: Sequence[Any], place: int) -> list[Any]:
    return [record for n, record in enumerate(records) if n != place]


def _have_same_shapes(runs: CollateRuns, one: Sequence[Any], two: Sequence[Any], draws: Draws) -> bool:
    first, second = (
        {path: part.shape for path, part in tensors_at(runs.run(records, draws).batch)} for records in (one, two)
    )
    return first == second


def _is_aligned(turn: int, of: Sequence[Any], one: Sequence[Any], two: Sequence[Any], compared: Compared) -> bool:
    """Whether the first row gets the same numbers in batches of other sizes: told where all records are the same."""
    size, other = len(one), len(two) if len(two) != len(one) else len(one) - 1
    return all(
        compared([record] * size, [record] * other, [0], [0], draws) is None
        for draws in sequences(turn)
        for record in of
    )
