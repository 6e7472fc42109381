"""When, by whom and on what a run was made, and what its monitors found, from the run's files."""

from __future__ import annotations

from typing import Any

from hushgrad.accounting.ledger.monitors import NORMAL, normal
from hushgrad.study.directory import RunDirectory
from hushgrad.study.provenance import DIGEST, read_provenance
from hushgrad.study.report.run_files import RunFiles


def provenance_facts(files: RunFiles, *, digest: bool) -> dict[str, Any]:
    """Return when a run began and ended, how many seconds it trained, by whom and on which file of data.

    The digest of the data is computed from private records without noise: it is left out unless `digest` asks for it.
    """
    kept = read_provenance(RunDirectory(files.folder).provenance) or {"started": None, "by": None, "data": None}
    data = kept["data"]
    return {
        "started": kept["started"],
        "ended": files.said("written") if files.has_ended else None,
        "seconds": files.said("wall_seconds"),
        "by": kept["by"],
        "data": None if data is None else {name: value for name, value in data.items() if digest or name != DIGEST},
    }


def monitor_facts(files: RunFiles) -> list[dict[str, Any]]:
    """Return what each monitor of the run noted last, with what is normal."""
    notes = {} if files.ledger is None else {note.about: note for note in files.ledger.notes if note.about in NORMAL}
    return [
        {"monitor": about, "steps": note.steps, "found": dict(note.values), "normal": normal(about)}
        for about, note in notes.items()
    ]
