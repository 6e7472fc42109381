"""A diagnosis as people read it: a table that fits the screen, the problems with their cures, a verdict."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hushgrad.checks.doctor.folding import fold_names, short_list
from hushgrad.printable import printable

if TYPE_CHECKING:
    from hushgrad.checks.doctor.findings import Diagnosis, Finding, Use

WIDE = 110
"""From here on there is room for the places, the batch and the memory of each use."""

SHOWN_PLACES = 4

NOTABLE = 0.1
"""A use whose extra operations are more than this share of an ordinary step's stands out."""


def text_of(report: RenderableType, width: int) -> str:
    """Return a report as plain text."""
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, highlight=False).print(report)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def report(diagnosis: Diagnosis, width: int) -> RenderableType:
    """Return the whole report for a screen of the given width."""
    parts: list[RenderableType] = [_heading(diagnosis)]
    parts += [_table(diagnosis, width), *_sums(diagnosis), ""] if diagnosis.uses else [""]
    if diagnosis.problems:
        parts += [Text("Problems", style="bold red"), _findings(diagnosis.problems), ""]
    if diagnosis.notes:
        parts += [Text("Notes", style="bold"), _findings(diagnosis.notes), ""]
    return Group(*parts, _verdict(diagnosis))


def _heading(diagnosis: Diagnosis) -> Text:
    heading = Text(printable(diagnosis.model), style="bold")
    batch = "not run" if diagnosis.batch_size is None else f"batch of {diagnosis.batch_size}"
    return heading.append(f"  {diagnosis.parameters:,} trainable values, {batch}", style="not bold")


def _table(diagnosis: Diagnosis, width: int) -> Table:
    wide = width >= WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), expand=False)
    table.add_column("parameters", overflow="fold", ratio=None, min_width=16)
    if wide:
        table.add_column("used in", overflow="fold", style="dim")
    table.add_column("operator", overflow="fold")
    table.add_column("norm by", overflow="fold")
    if wide:
        table.add_column("calls", justify="right")
    table.add_column("T", justify="right", no_wrap=True)
    table.add_column("p × d", justify="right", no_wrap=True)
    if wide:
        table.add_column("share", justify="right", no_wrap=True)
    table.add_column("extra", justify="right", no_wrap=True)
    if wide:
        table.add_column("kept", justify="right", no_wrap=True)
    total = sum(use.ordinary_flops for use in diagnosis.uses)
    entries = [(f"{short_list(use.parameters)}\n{use.module}", _facts(use)) for use in diagnosis.uses]
    by_facts = {_facts(use): use for use in diagnosis.uses}
    for name, facts, count in fold_names(entries):
        use = by_facts[facts]  # type: ignore[index]
        parameters, _, module = name.partition("\n")
        cells: list[str | Text] = [printable(parameters, 200)]
        if wide:
            cells.append(printable(module, 120) or "(the model)")
        times = f" ×{use.calls}" if use.calls > 1 and not wide else ""
        cells += [printable(use.operator) + times, _way(use)]
        if wide:
            cells.append(str(use.calls * count))
        cells += [_count(use.positions), _matrix(use)]
        if wide:
            cells.append(_percent(use.ordinary_flops * count, total))
        cells.append(_extra(use, count, total))
        if wide:
            cells.append(_bytes(use.memory_bytes * count))
        table.add_row(*cells)
    return table


def _facts(use: Use) -> tuple[Any, ...]:
    return (
        use.operator,
        use.way,
        use.calls,
        use.positions,
        use.outputs,
        use.inputs,
        use.ordinary_flops,
        use.private_flops,
        use.memory_bytes,
    )


def _way(use: Use) -> Text:
    """A fallback is named with its own cost factor."""
    return Text(f"{use.way} ({use.cost:.0f}×)", style="yellow") if use.way.startswith("generic") else Text(use.way)


def _extra(use: Use, count: int, total: int) -> Text:
    extra = (use.private_flops - use.ordinary_flops) * count
    return Text(f"+{_percent(extra, total)}", style="yellow" if extra > NOTABLE * total else "")


def _percent(part: int, total: int) -> str:
    share = part / total if total else 0.0
    return f"{share:.0%}" if share >= 0.095 or part == 0 else f"{share:.1%}" if share >= 0.0005 else "0.0%"


def _matrix(use: Use) -> str:
    return "" if use.outputs is None or use.inputs is None else f"{use.outputs} × {use.inputs}"


def _count(value: int | None) -> str:
    return "" if value is None else str(value)


def _bytes(count: int) -> str:
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 10 or units[0] == "B" else f"{size:.1f} {units[0]}"


def _sums(diagnosis: Diagnosis) -> list[Text]:
    cost = diagnosis.cost or 1.0
    return [
        Text(
            f"A private step takes {cost:.2f}× the operations of an ordinary one in these uses (extra, estimated), "
            f"draws {diagnosis.parameters:,} values of noise, and keeps {_bytes(diagnosis.memory_bytes)} until the "
            f"clipped sums are formed. T: positions in each example. Ways are chosen by the constants of this machine "
            f"({diagnosis.machine}; `hushgrad machine`) under a budget of {_bytes(diagnosis.budget_bytes)}."
        )
    ]


def _findings(findings: tuple[Finding, ...]) -> Table:
    """Equal findings are one line with all their places."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        places.setdefault((finding.code, finding.what, finding.cure), []).append(finding.where)
    table = Table.grid(padding=(0, 2, 0, 0))
    with_code = any(code for code, _, _ in places)
    if with_code:
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for (code, what, cure), where in places.items():
        body = Text()
        if names := _places(where):
            body.append(names, style="bold").append(": ")
        body.append(printable(what, 2000))
        if cure:
            body.append("\n→ ", style="green").append(printable(cure, 2000))
        table.add_row(*([Text(code, style="red")] if with_code else []), body)
    return table


def _places(where: list[str]) -> str:
    names = [name for name, _, _ in fold_names((name, None) for name in where if name)]
    shown = ", ".join(printable(name, 120) for name in names[:SHOWN_PLACES])
    return shown + (f" and {len(names) - SHOWN_PLACES} more" if len(names) > SHOWN_PLACES else "")


def _verdict(diagnosis: Diagnosis) -> Text:
    if not diagnosis.is_ready:
        count = len(diagnosis.problems)
        return Text(f"Not ready: {count} problem{'s' if count > 1 else ''} to solve before training.", style="bold red")
    if diagnosis.batch_size is None:
        return Text("Nothing to refuse was found by reading. Give a batch to run it on.", style="bold")
    return Text("Ready to be made private.", style="bold green")
