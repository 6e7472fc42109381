"""The report of a sweep: its runs side by side, and what choosing among them costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hushgrad.accounting.guarantee import delta_text
from hushgrad.study.report.comparison import contradictions
from hushgrad.study.report.document import (
    NO_RUN,
    NOT_PRIVATE,
    PRIVATE,
    Document,
    Image,
    Section,
    TextTable,
    percent,
    plain,
    up,
)
from hushgrad.study.sweep.pictures import accuracy_picture, curves_picture
from hushgrad.study.sweep.plan import ORDINARY
from hushgrad.study.sweep.table import Group

Facts = Mapping[str, Any]


def sweep_document(facts: Facts) -> Document:
    """Return the document of a sweep's facts."""
    runs, choosing = facts["runs"], facts["choosing"]
    done = completed(facts)
    figures = [(f"{done} of {len(runs)}", "runs completed")]
    if _has_released(facts):
        attempts = choosing["private_attempts"]
        figures += [
            (up(choosing["everything"]), f"ε of publishing everything, δ = {delta_text(facts['delta'])}"),
            (up(choosing["all_private_attempts"]), f"ε of all {attempts} private attempts together"),
        ]
    private = not math.isinf(float(choosing["everything"])) and not contradictions(facts)
    sections = (
        _accuracy(facts),
        _choosing(facts),
        _curves(facts),
        _settings(facts),
        _runs(facts),
        _outside(facts),
        _recompute(facts),
    )
    return Document(
        title=facts["name"],
        badge=NO_RUN if not done else PRIVATE if private else NOT_PRIVATE,
        contradictions=contradictions(facts),
        notices=tuple(facts["notices"]),
        figures=tuple(figures),
        sections=tuple(section for section in sections if section is not None),
    )


def completed(facts: Facts) -> int:
    """Return how many runs of the sweep were completed."""
    return sum(run["status"] == "completed" for run in facts["runs"])


def is_without_a_run(facts: Facts) -> bool:
    """Are these the facts of a sweep of which no run was completed?"""
    return facts["kind"] == "sweep" and not completed(facts)


def _has_released(facts: Facts) -> bool:
    """Has any run or attempt left files, whose ε counts?"""
    return bool(completed(facts) or facts["choosing"]["abandoned_attempts"])


def groups_of(facts: Facts) -> list[Group]:
    """Return the groups over seeds as values."""
    return [Group(**{**group, "epsilon": float(group["epsilon"])}) for group in facts["over_seeds"]]


def _accuracy(facts: Facts) -> Section | None:
    groups = groups_of(facts)
    if not groups:
        return None
    rows = tuple(
        (
            group.series,
            group.aim,
            "NOT PRIVATE" if math.isinf(group.epsilon) else up(group.epsilon),
            str(group.runs),
            percent(group.mean) + (f" ± {100 * group.spread:.1f}" if group.spread is not None else ""),
            f"{percent(group.lowest)} – {percent(group.highest)}",
            percent(group.largest_class),
        )
        for group in groups
    )
    picture = accuracy_picture(groups, title="", delta=facts["delta"])
    image = Image(picture.svg, "Test accuracy against the noise multiplier and against epsilon")
    measured = ("runs", "test accuracy", "lowest – highest", "largest class")
    columns = ("series", "noise", f"ε at δ = {delta_text(facts['delta'])}", *measured)
    return Section(
        "What noise does",
        (
            "ε is that of one run alone. Accuracy is the mean over seeds ± the standard deviation between runs; always "
            "answering the largest class of the test records reaches that class's share.",
        ),
        table=TextTable(columns, rows),
        images=(image,),
    )


def _choosing(facts: Facts) -> Section | None:
    if not _has_released(facts):
        return None
    choosing = facts["choosing"]
    delta = f"δ = {delta_text(facts['delta'])}"
    text = [
        "Each ε in the table is true for its run alone. Whoever looks at all runs and publishes one of them, or these "
        "curves, has released more: all runs together, attempts that failed or were cut off included."
    ]
    told = [
        (f"ε of all private attempts together, {delta}", up(choosing["all_private_attempts"])),
        ("private attempts", plain(choosing["private_attempts"])),
        ("of them failed or cut off (all kinds)", plain(choosing["abandoned_attempts"])),
        ("attempts without noise", plain(choosing["noiseless_attempts"])),
        ("ordinary runs", plain(choosing["ordinary_runs"])),
        (f"ε of everything, {delta}", up(choosing["everything"])),
    ]
    if math.isinf(float(choosing["everything"])):
        text.append(
            "Runs without noise on the same records leave no guarantee at all for whoever sees their results. Tune on "
            "public data, or leave them out with --no-baseline and without σ = 0."
        )
    found = [best for best in choosing["best"] if best["alone"] is not None]
    rows = tuple(
        (
            best["label"],
            best["aim"],
            percent(best["test_accuracy"]),
            up(best["alone"]),
            str(best["runs"]),
            up(best["drawn_number"]),
        )
        for best in found
    )
    if found:
        text.append(
            "The last column is the price of an honest choice (Papernot & Steinke 2021): the number of runs is drawn "
            "from a geometric distribution beforehand, with as many on average, none costs more than the one chosen, "
            "and only the best is published. This sweep ran a fixed grid, so the column is for the next one."
        )
    columns = ("subject", "best private run", "test accuracy", "its ε alone", "private runs", "ε of an honest choice")
    table = TextTable(columns, rows) if found else None
    return Section("What choosing among them costs", tuple(text), facts=tuple(told), table=table)


def _curves(facts: Facts) -> Section | None:
    images = []
    for series in dict.fromkeys(run["series"] for run in facts["curves"]):
        members = [(run["aim"], run["points"]) for run in facts["curves"] if run["series"] == series and run["points"]]
        if members:
            picture = curves_picture(members, title=series, delta=facts["delta"])
            images.append(Image(picture.svg, f"Accuracy and epsilon over steps: {series}"))
    return Section("Curves", images=tuple(images)) if images else None


def _settings(facts: Facts) -> Section | None:
    """Return what each kind of run was trained with, once for all seeds; None where no run says it."""
    told: dict[tuple[str, str, str], None] = {}
    for run in facts["runs"]:
        if run["settings"]:
            words = [f"{key.replace('_', ' ')} {plain(value)}" for key, value in run["settings"].items()]
            told[run["series"], run["aim"], ", ".join(words)] = None
    if not told:
        return None
    text = "A task has settings of its own for each ε: runs of one series at different ε may differ in more than noise."
    return Section("Settings", (text,), table=TextTable(("series", "noise", "settings"), tuple(told)))


def _runs(facts: Facts) -> Section:
    rows = tuple(
        (
            run["series"],
            run["aim"],
            str(run["seed"]),
            run["status"] if run["error"] is None else f"failed: {run['error']}",
            "" if run["status"] != "completed" else "NOT PRIVATE" if run["aim"] == ORDINARY else up(run["epsilon"]),
            "" if run["test_accuracy"] is None else percent(run["test_accuracy"]),
            (run["ledger"] or "–")[:12],
        )
        for run in facts["runs"]
    )
    columns = ("series", "noise", "seed", "status", "ε", "test accuracy", "ledger (SHA-256, first 12 digits)")
    return Section("All runs", table=TextTable(columns, rows))


def _outside(facts: Facts) -> Section | None:
    outside = tuple(facts["outside_the_guarantee"])
    return Section("Outside every ε on this page", points=outside) if outside else None


def _recompute(facts: Facts) -> Section:
    wrong = tuple(row["what"] for row in facts["agreement"] if not row["held"])
    told = (
        ("plan (SHA-256)", facts["plan"]),
        (
            "figures that agree between the runs' files",
            f"{len(facts['agreement']) - len(wrong)} of {len(facts['agreement'])}",
        ),
    )
    does = "computes every number on this page anew from the folders of the runs."
    commands = (("hushgrad report --check FOLDER", does),)
    points = tuple(f"DO NOT AGREE: {what}" for what in wrong)
    return Section("How to recompute it", commands=commands, facts=told, points=points)
