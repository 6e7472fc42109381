"""An earlier report of the same run: files that hold less than it saw have been cut since.

An earlier report counts where it lies in the run's own folder or names the run's ledger. What it saw must still be
there: the ledger's last record, and no larger ε. ε by another version of hushgrad is not compared: it may be sharper.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from hushgrad._version import __version__
from hushgrad.accounting.ledger.records import LedgerHead
from hushgrad.accounting.ledger.view import view_when
from hushgrad.study.directory import RunDirectory, from_json
from hushgrad.study.report.comparison import Comparison
from hushgrad.study.report.document import up
from hushgrad.study.report.run_files import LEDGER, RunFiles
from hushgrad.study.report.values import stated_epsilon

DATA, CARD = "report.json", "model-card.md"
_CARDS_EPSILON = re.compile(r"^- \*\*ε = (?P<epsilon>[0-9.e\\+-]+|∞)\*\*", re.MULTILINE)
_ROUNDING = 2e-3
"""Relative: a card rounds ε up to four digits, and a report may have ε from a card."""


def earlier_claims(out: Path, files: RunFiles, epsilon: float) -> tuple[list[Comparison], list[float]]:
    """Return what an earlier report in `out` says against the files of a run, and the ε's that it says.

    Nothing where there is none, where it is of another run, or where the files hold all that it saw.
    """
    rows: list[Comparison] = []
    stated: list[float] = []
    privacy = _privacy(out / DATA)
    own = out.resolve() == files.folder.resolve()
    if privacy is not None and (own or _names(privacy, files)):
        before = stated_epsilon(privacy.get("epsilon"))
        if _lost(privacy, files):
            end = privacy["ledger_end"]
            rows.append(
                Comparison(
                    f"the ledger in the {DATA} that was here and in the run's folder",
                    False,
                    {DATA: f"had {end['records']} records, ε = {up(before)}", LEDGER: "lacks the last of them"},
                )
            )
            stated.append(before)
        elif privacy.get("made_with") == __version__ and before > epsilon * (1 + _ROUNDING):
            rows.append(
                Comparison(
                    f"ε in the {DATA} that was here and from the run's files",
                    False,
                    {DATA: up(before), LEDGER: up(epsilon)},
                )
            )
            stated.append(before)
    card = _card(out / CARD) if own else None
    if card is not None and not stated and card > epsilon * (1 + _ROUNDING):
        rows.append(
            Comparison(
                f"ε in the {CARD} that was here and from the run's files", False, {CARD: up(card), LEDGER: up(epsilon)}
            )
        )
        stated.append(card)
    return rows, stated


def _privacy(path: Path) -> dict[str, Any] | None:
    """Return what an earlier report of a run says of privacy; None where there is none that can be read."""
    try:
        report = from_json(path.read_text(encoding="utf-8"))
        facts = report["facts"]
        return {**facts["privacy"], "made_with": report["made_with"]["hushgrad"]} if facts["kind"] == "run" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is about to be replaced


def _names(privacy: dict[str, Any], files: RunFiles) -> bool:
    return files.ledger is not None and _end(privacy).get("run") == files.ledger.run


def _lost(privacy: dict[str, Any], files: RunFiles) -> bool:
    """Does the ledger lack the record that it ended with then?"""
    end = _end(privacy)
    records, seen = end.get("records"), end.get("hash")
    if type(records) is not int or not isinstance(seen, str):
        return False
    return files.ledger is None or view_when(RunDirectory(files.folder).ledger, LedgerHead(records - 1, seen)) is None


def _end(privacy: dict[str, Any]) -> dict[str, Any]:
    end = privacy.get("ledger_end")
    return end if isinstance(end, dict) else {}


def _card(path: Path) -> float | None:
    try:
        found = _CARDS_EPSILON.search(path.read_text(encoding="utf-8"))
        text = None if found is None else found["epsilon"].replace("\\", "")
        return None if text is None else math.inf if text == "∞" else float(text)
    except (OSError, ValueError):
        return None
