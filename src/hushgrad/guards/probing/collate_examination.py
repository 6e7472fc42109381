"""The examination of a collate function on the records of one item: all that is asked of it, in order."""

from __future__ import annotations

from hushgrad.guards.probing import companions, full_batches
from hushgrad.guards.probing.collate_probe import RECORDS, Form, require_separate_rows
from hushgrad.guards.probing.collate_records import require_unwritten
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.widths import Drawn


def require_separate_records(runs: CollateRuns, drawn: Drawn, *, is_first: bool) -> Form | None:
    """Refuse a collate function that lets records of an item influence each other, or writes that into the dataset.

    What could not be told is added to `runs.untold`.

    Args:
        runs: of the function.
        drawn: the item; up to 256 of its records are read once more.
        is_first: whether it is the function's first examination; later ones read 32 records at most.

    Returns the form of the batch; None where it could not be told.

    Raises:
        CrossSampleLeakError: naming the part of the batch or of a record, or the place of what is kept.
    """
    records = full_batches.own_records(drawn, full_batches.MOST_OWN if is_first else full_batches.MOST_LATER)
    form = require_separate_rows(runs, records[:RECORDS])
    known = Form() if form is None else form
    if not companions.require_same_beside_any(runs, records[: companions.MOST_READ], drawn.size, known.roles):
        runs.untold[companions.UNTOLD] = None
    if not full_batches.require_same_in_full_batches(runs, records, drawn.size, known.roles, reorders=known.reorders):
        runs.untold[full_batches.UNTOLD] = None
    require_unwritten(runs, drawn, records[:RECORDS])
    return form
