"""The page: what was found, in tables that a reader understands, as one HTML file without scripts and requests."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.contestants import CONTESTANTS, HUSHGRAD, NOT_PRIVATE, ORDINARY
from benchmarks.page.budget import MOST_ROUNDS
from benchmarks.page.others import NOTABLE_SHARE
from benchmarks.page.results import Found, WorkloadFound
from benchmarks.page.worker import Figure
from benchmarks.timing import FEWEST_ROUNDS

FOLDER = Path(__file__).resolve().parent

ALLOCATOR_TITLES = {"default": "default allocator", "steady": "tuned allocator"}

OWN = "hushgrad"  # what the names of our own contestants begin with


@dataclass(frozen=True)
class Cell:
    """A figure and its interval; without a figure a dash."""

    value: str
    interval: str = ""
    is_fastest: bool = False


@dataclass(frozen=True)
class Row:
    """One contestant, or in the summary one workload."""

    title: str
    cells: tuple[Cell, ...]
    is_ours: bool = False


@dataclass(frozen=True)
class Section:
    """One workload."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    absent: tuple[tuple[str, str], ...]
    error: str | None
    busy: str | None


NOTHING = Cell("–")


def html(found: Found) -> str:
    """Return the page."""
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined)
    environment.filters["base64"] = lambda text: base64.b64encode(text.encode("utf-8")).decode("ascii")
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return environment.get_template("page.html").render(
        found=found,
        style=Markup(style),
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'",
        allocators=[ALLOCATOR_TITLES[name] for name in allocators_of(found)],
        summary=summary(found),
        sections=[section(found, work) for work in found.workloads.values()],
        disturbance=disturbance(found),
        growth_busy=None if found.growth is None else busy(found.growth.others),
        missing=absentees(found.missing),
        fewest=FEWEST_ROUNDS,
        most=MOST_ROUNDS,
    )


def allocators_of(found: Found) -> list[str]:
    """Return the allocators that were measured."""
    return [name for name in ALLOCATOR_TITLES if name == "default" or found.one_allocator is None]


def summary(found: Found) -> list[Row]:
    """Return a row for each workload: for each allocator hushgrad's ratio and that of the fastest private peer."""
    rows = []
    for work in found.workloads.values():
        cells = []
        for allocator in allocators_of(found):
            figures = work.parts[allocator].figures if allocator in work.parts else {}
            peer = fastest_peer(figures)
            marked = fastest({name: figures[name] for name in figures if name in (HUSHGRAD, peer)})
            cells.append(_ratio(figures[HUSHGRAD], is_fastest=HUSHGRAD in marked) if HUSHGRAD in figures else NOTHING)
            if peer is None:
                cells.append(NOTHING)
            else:
                cell = _ratio(figures[peer], is_fastest=peer in marked)
                cells.append(replace(cell, interval=CONTESTANTS[peer].title))
        rows.append(Row(f"{work.title}, B={work.batch_size}", tuple(cells)))
    return rows


def fastest(figures: Mapping[str, Figure]) -> set[str]:
    """Return the private contestant with the smallest ratio and those whose intervals reach into its own.

    Nobody, if there is only one.
    """
    ratios = {name: figure.to_ordinary for name, figure in figures.items() if name not in NOT_PRIVATE}
    if len(ratios) < 2:
        return set()
    smallest = min(ratios.values(), key=lambda ratio: ratio.median)
    return {name for name, ratio in ratios.items() if ratio.low <= smallest.high}


def fastest_peer(figures: Mapping[str, Figure]) -> str | None:
    """Return the private contestant of others with the smallest median ratio, or None without one."""
    peers = [name for name in figures if name not in NOT_PRIVATE and not name.startswith(OWN)]
    return min(peers, key=lambda name: figures[name].to_ordinary.median, default=None)


def section(found: Found, work: WorkloadFound) -> Section:
    """Return the table of a workload with what has to be said beside it."""
    measured = [name for name in CONTESTANTS if any(name in part.figures for part in work.parts.values())]
    marked = {allocator: fastest(part.figures) for allocator, part in work.parts.items()}
    rows = []
    for name in measured:
        cells = []
        for allocator in allocators_of(found):
            figure = work.parts[allocator].figures.get(name) if allocator in work.parts else None
            if figure is None:
                cells += [NOTHING, NOTHING]
                continue
            cells.append(Cell(f"{figure.step_ms.median:.2f}"))
            is_fastest = name in marked[allocator]
            cells.append(Cell("1") if name == ORDINARY else _ratio(figure, is_fastest=is_fastest))
        rows.append(Row(CONTESTANTS[name].title, tuple(cells), is_ours=name.startswith(OWN)))
    rounds = [f"{part.rounds} ({ALLOCATOR_TITLES[name]})" for name, part in work.parts.items()]
    return Section(
        f"{work.title}, B={work.batch_size}",
        tuple(rows),
        (f"Rounds: {', '.join(rounds)}.",) if rounds else (),
        tuple(absentees(work.absent)),
        work.error,
        busy(work.others),
    )


def absentees(absent: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return those who took no part, together where they have one reason, and the reason."""
    titles: dict[str, list[str]] = {}
    for name, why in absent.items():
        titles.setdefault(why, []).append(CONTESTANTS[name].title)
    return [(" and ".join(together), why) for why, together in titles.items()]


def busy(others: float | None) -> str | None:
    """Return that other programs were at work during a measurement, if their share is worth a word."""
    if others is None or others <= NOTABLE_SHARE:
        return None
    return f"Other programs took {others:.0%} of the processors meanwhile."


def disturbance(found: Found) -> str | None:
    """Return what has to be said on top about other programs at work, or None if the machine was quiet."""
    shares = [work.others for work in found.workloads.values()]
    known = [share for share in shares if share is not None]
    if not known:
        if found.machine.is_quiet:
            return None
        return (
            f"Other programs were running when the measurement began (load {found.machine.load_per_core:.2f} per "
            "core); this system doesn't say what they took later. Times and ratios are not to be trusted."
        )
    noted = [share for share in known if share > NOTABLE_SHARE]
    if not noted:
        return None
    return (
        f"Other programs were at work: they took up to {max(noted):.0%} of the processors, in {len(noted)} of "
        f"{len(shares)} workloads. Both sides of a ratio see the same machine, but such times are not to be quoted; "
        "run it again when nothing else runs."
    )


def _ratio(figure: Figure, *, is_fastest: bool) -> Cell:
    ratio = figure.to_ordinary
    return Cell(f"{ratio.median:.2f}×", f"{ratio.low:.2f}–{ratio.high:.2f}", is_fastest)
