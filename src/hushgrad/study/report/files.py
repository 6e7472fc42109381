"""The files of a report, written and checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushgrad._version import __version__
from hushgrad.errors import InvalidArgumentError
from hushgrad.extras import needs_extra
from hushgrad.result_file import replace_file
from hushgrad.study.directory import from_json, json_text, make_folder
from hushgrad.study.report import earlier
from hushgrad.study.report.comparison import contradictions
from hushgrad.study.report.document import Document
from hushgrad.study.report.render import html, markdown
from hushgrad.study.report.run_document import run_document
from hushgrad.study.report.run_facts import run_facts
from hushgrad.study.report.sweep_document import sweep_document
from hushgrad.study.report.sweep_facts import sweep_facts
from hushgrad.study.report.values import same

PAGE, DATA, CARD = "report.html", earlier.DATA, earlier.CARD


@dataclass(frozen=True, slots=True)
class ReportCheck:
    """One thing that `check_report` looked at, and whether it is as it should be."""

    what: str
    held: bool


def gather_facts(
    folder: Path, *, name: str | None, uncovered: bool, digest: bool = False, replaces: Path | None = None
) -> dict[str, Any]:
    """Return the facts of the run or the sweep in `folder`; an earlier report of the run in `replaces` is compared."""
    if (folder / "plan.json").is_file():
        return sweep_facts(folder, name=name, uncovered=uncovered)
    return run_facts(folder, name=name, uncovered=uncovered, digest=digest, replaces=replaces)


def write_report(
    folder: Path, out: Path, *, name: str | None = None, uncovered: bool = False, digest: bool = False
) -> dict[str, Any]:
    """Write page, JSON and model card of the run or sweep in `folder` to `out` and return what the JSON says.

    `uncovered` shows what ε does not cover as well: training loss and training accuracy; `digest` shows that of
    the data file, on the page alone. Where files contradict each
    other, or a report of the run that is in `out` already, "contradictions" in the JSON names each, and page and card
    begin with them.
    """
    facts = gather_facts(folder, name=name, uncovered=uncovered, digest=digest, replaces=out)
    report = {
        "contradictions": list(contradictions(facts)),
        "made_with": _made_with(),
        "shows_uncovered": uncovered,
        "shows_digest_of_data": digest,
        "facts": facts,
    }
    document = document_of(facts)
    make_folder(out)
    replace_file(out / DATA, (json_text(report, indent=2) + "\n").encode())
    replace_file(out / PAGE, html(document).encode())
    replace_file(out / CARD, markdown(document).encode())
    return report


def check_report(folder: Path, out: Path) -> list[ReportCheck]:
    """Compute everything in the report in `out` anew from the files in `folder` and return what was compared.

    Every number of the JSON is compared with one computed from the run's files; the page and the card must be, to the
    byte, what that JSON gives. Pictures are drawn by matplotlib, so the page of another version cannot be compared and
    is then reported as a check that did not hold.

    Guarantee: a number that was changed in the JSON, on the page or in the model card is found.
    """
    try:
        report = from_json((out / DATA).read_text(encoding="utf-8"))
        stored, made_with = report["facts"], report["made_with"]
        name, uncovered = str(stored["name"]), bool(report["shows_uncovered"])
        digest = bool(report.get("shows_digest_of_data", False))
    except FileNotFoundError as error:
        raise InvalidArgumentError(
            "the file is missing, so there is no report to check", where=DATA, cure="Make a report first"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError("the file is damaged", where=DATA, cure="Make the report anew") from error
    facts = gather_facts(folder, name=name, uncovered=uncovered, digest=digest)
    checks = [ReportCheck(f"{DATA}: {place}", held) for place, held in _compare(stored, facts)]
    checks.append(
        ReportCheck(f"{DATA}: contradictions", report.get("contradictions", []) == list(contradictions(stored)))
    )
    checks += [ReportCheck(f"the files agree: {row['what']}", row["held"]) for row in facts["agreement"]]
    document = document_of(stored)
    if made_with != _made_with():
        return [
            *checks,
            ReportCheck(f"{PAGE}: made with other versions, so it cannot be compared; make it anew", False),
        ]
    for file, text in ((PAGE, html(document)), (CARD, markdown(document))):
        path = out / file
        checks.append(
            ReportCheck(f"{file}: what the JSON gives", path.is_file() and path.read_bytes() == text.encode())
        )
    return checks


def document_of(facts: dict[str, Any]) -> Document:
    """Return the document of facts of either kind."""
    return sweep_document(facts) if facts["kind"] == "sweep" else run_document(facts)


def _made_with() -> dict[str, str]:
    with needs_extra("report", "a report"):
        import matplotlib
    return {"hushgrad": __version__, "matplotlib": matplotlib.__version__}


def _compare(stored: Any, fresh: Any, place: str = "") -> Iterator[tuple[str, bool]]:
    """Yield each leaf of either value with whether both have it alike."""
    if isinstance(stored, dict) and isinstance(fresh, dict):
        for key in sorted(stored.keys() | fresh.keys()):
            inner = f"{place}.{key}" if place else str(key)
            if key in stored and key in fresh:
                yield from _compare(stored[key], fresh[key], inner)
            else:
                yield inner, False
    elif isinstance(stored, list) and isinstance(fresh, list):
        if len(stored) != len(fresh):
            yield f"{place} (how many)", False
        for index, (left, right) in enumerate(zip(stored, fresh, strict=False)):
            yield from _compare(left, right, f"{place}[{index}]")
    else:
        yield place, same(stored, fresh)
