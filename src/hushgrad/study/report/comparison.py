"""One statement that several files of a run make, compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hushgrad.study.report.document import plain
from hushgrad.study.report.run_files import LEDGER, SUMMARY
from hushgrad.study.report.values import same


@dataclass(frozen=True, slots=True)
class Comparison:
    """One thing that several files say: what each of them says of it, and whether they may stand together."""

    what: str
    held: bool
    said: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        return {"what": self.what, "about": self.about, "held": self.held, "said": dict(self.said)}

    @property
    def about(self) -> str:
        """What it is about, without the names of the files."""
        return self.what.partition(" in ")[0]


def contradictions(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a sentence for each row of a report's facts that does not hold: its subject, and what each file says."""
    return tuple(
        f"{row['about']}: " + "; ".join(f"{file} says {value}" for file, value in row["said"].items())
        if row["said"]
        else f"{row['what']}: they do not"
        for row in facts["agreement"]
        if not row["held"]
    )


def compared(what: str, stated: Any, given: Any, *, held: bool | None = None) -> Comparison:
    """Return what the summary states beside what the ledger gives, held where they are the same, or as told."""
    held = same(stated, given) if held is None else held
    return Comparison(what, held, {SUMMARY: shown(stated), LEDGER: shown(given)})


def shown(value: Any) -> str:
    """Return a value with enough digits to tell it from one that differs."""
    return f"{value:.10g}" if isinstance(value, float) else plain(value)
