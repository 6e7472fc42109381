"""Why a run may not begin in a folder: what is there already, what it has spent, and how to go on."""

from __future__ import annotations

import shlex
from pathlib import Path

from hushgrad.errors import HushgradError, InvalidArgumentError
from hushgrad.printable import printable
from hushgrad.session.spending import events_at
from hushgrad.study.account import spent_words
from hushgrad.study.configuration import DEFAULT_DELTA
from hushgrad.study.directory import RunDirectory, require_unused
from hushgrad.study.summary_file import read_summary


def require_no_run(out: Path) -> None:
    """Raise InvalidArgumentError unless `out` is free or an empty folder; of a run in it, what it has spent.

    Guarantee: no run overwrites another, and a refusal names what the run in the folder has spent.
    """
    try:
        require_unused(out)
    except InvalidArgumentError as error:
        found = _run_in(RunDirectory(out)) if out.is_dir() else None
        if found is None:
            raise
        what, cure = found
        raise InvalidArgumentError(what, where="--out", cure=cure) from error


def _run_in(directory: RunDirectory) -> tuple[str, str] | None:
    """Return what kind of run lies in a folder, with what it has spent, and how to go on; None where there is none."""
    if not directory.config.exists():
        return None
    try:
        summary = read_summary(directory.path) or {}
        spent = _spent(directory, summary)
    except HushgradError:
        return None
    steps, planned = summary.get("steps", 0), summary.get("planned_steps")
    ended = summary.get("status") == "completed"
    kind = "a completed run" if ended else "a run that is not completed"
    if planned and not ended:
        kind = f"{kind} ({steps} of {planned} steps)"
    another = "For another run choose another folder: what this one has spent on these records stays spent"
    if spent is None or ended or not directory.checkpoint.exists():
        return f"the folder holds {kind}{'' if spent is None else f', which has spent {spent}'}", another
    go_on = f"Go on with it: hushgrad train --resume {shlex.quote(str(directory.path))}. {another}"
    return f"the folder holds {kind}, which has spent {spent}", go_on


def _spent(directory: RunDirectory, summary: dict[str, object]) -> str | None:
    """Return the ε of the run's ledger as text, of a shared one that of all its runs; None where nothing is charged."""
    events = events_at(directory.ledger)
    if not events:
        return None
    stated = summary.get("delta")
    delta = stated if isinstance(stated, float) and 0 < stated < 1 else DEFAULT_DELTA
    spent, account = spent_words(events, delta), directory.account
    return spent if account.phase is None else f"{spent} with the other runs in {printable(account.ledger.name)}"
