"""A ledger that holds steps of the very run that is to begin: it must be gone on with, or left to the earlier run."""

from __future__ import annotations

import os

from hushgrad.errors import ProtocolError
from hushgrad.privacy import Privacy
from hushgrad.session.spending import steps_taken


def require_unused(
    ledger: str | os.PathLike[str] | None, privacy: Privacy, *, where: str, resume: str, folder: str
) -> None:
    """Refuse to begin anew where a ledger holds steps of an earlier run, or of the phase that would begin.

    Args:
        ledger: the path; None where nothing is kept.
        privacy: says the phase, and whether the ledger lies in the framework's own folder.
        where: the framework's name.
        resume: the call that goes on.
        folder: the argument that names the framework's own folder.

    Raises:
        ProtocolError: it holds such steps.
    """
    if steps := steps_taken(ledger, privacy.phase):
        of = "an earlier run" if privacy.phase is None else f"the phase {privacy.phase!r}"
        own = "a phase" if privacy.phase is not None else "a path in Privacy(ledger=...)"
        raise ProtocolError(
            f"its ledger holds {steps} steps of {of}",
            where=where,
            cure=f"Go on with {resume}, or give this run {folder if privacy.ledger is None else own} of its own; what "
            f"both cost adds up",
        )
