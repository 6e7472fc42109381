"""Sections for whoever has to sign: when and on what, what is still to decide, what monitors found, and signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hushgrad.study.report.assumptions import BROKEN, UNKNOWN
from hushgrad.study.report.comparison import contradictions
from hushgrad.study.report.document import Section, TextTable, plain

Facts = Mapping[str, Any]

SIGNATORIES = ("who trained the model", "who owns the data", "privacy officer")

BEYOND_THE_RUN = (
    "The use of the model: who gets it, for what, and whether its predictions for single people are given out",
    "Other runs and releases on the same data: their ε adds to this one (hushgrad status FOLDER sums them)",
)
"""Decisions that no file of a run can know of."""


def provenance(facts: Facts) -> Section:
    """Return when the run was made, by whom, on which data and with what."""
    found = facts["provenance"]
    data = found["data"]
    told = [
        ("run began", plain(found["started"])),
        ("run ended", plain(found["ended"])),
        ("duration of training", _duration(found["seconds"])),
        ("run by", found["by"] or "not stated (hushgrad train --by NAME)"),
        ("data", "came with a package" if data is None else _data(data)),
    ]
    if data is not None:
        hidden = "in provenance.json of the run's folder (ε does not cover it; report --with-data-digest shows it here)"
        told.append(("SHA-256 of the data", data.get("sha256", hidden)))
    told.append(("versions", ", ".join(f"{name} {plain(value)}" for name, value in facts["versions"].items())))
    return Section("When, by whom, on what", facts=tuple(told), on_card=False)


def _data(data: Facts) -> str:
    files = data["files"]
    return f"{data['name']}, {'' if files == 1 else f'{files} files, '}{data['bytes']:,} bytes"


def _duration(seconds: float | None) -> str:
    """Return a duration to about a tenth of it: exact times show how many records were drawn."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"about {seconds:.1g} s" if seconds < 10 else f"about {10 * round(seconds / 10)} s"
    return f"about {seconds / 60:.2g} min" if seconds < 5400 else f"about {seconds / 3600:.2g} h"


def open_decisions(facts: Facts) -> Section | None:
    """Return what the run's files cannot decide, as a list to tick off."""
    if not facts["privacy"]["private"] and not facts["assumptions"]:
        return None
    broken = [f"DID NOT HOLD. {row['assumption']}: {row['evidence']}" for row in _of(facts, BROKEN)]
    unknown = [f"{row['assumption']}: {row['evidence']}" for row in _of(facts, UNKNOWN)]
    outside = [f"Not covered by ε: {said}" for said in facts["outside_the_guarantee"]]
    text = "No file of the run can answer these. Tick each that was looked at, and say by whom where it matters."
    points = (*broken, *unknown, *outside, *BEYOND_THE_RUN)
    return Section("Decisions still open", (text,), points=points, kind="checks", on_card=False)


def _of(facts: Facts, status: str) -> list[Facts]:
    return [row for row in facts["assumptions"] if row["status"] == status]


def monitors(facts: Facts) -> Section | None:
    """Return what the run's monitors noted last, beside what is normal."""
    if not facts["monitors"]:
        return None
    rows = tuple(
        (
            row["monitor"],
            plain(row["steps"]),
            ", ".join(f"{name.replace('_', ' ')} {plain(value)}" for name, value in row["found"].items()),
            row["normal"],
        )
        for row in facts["monitors"]
    )
    return Section("What its monitors found", table=TextTable(("monitor", "after steps", "found", "normal"), rows))


def sign_off(facts: Facts) -> Section:
    """Return room for a decision and for signatures."""
    if contradictions(facts):
        text = "The files of this run contradict each other: there is nothing to sign."
        return Section("Sign-off", (text,), on_card=False)
    rows = tuple((who, "", "", "") for who in SIGNATORIES)
    return Section(
        "Sign-off",
        ("Decision: ☐ may be released  ☐ may be released under conditions  ☐ may not be released",),
        table=TextTable(("", "name", "date", "signature"), rows),
        kind="signatures",
        on_card=False,
    )
