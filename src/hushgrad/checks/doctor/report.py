"""A diagnosis as people read it: a table that fits the screen, the problems with their cures, a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hushgrad.checks.doctor.folding import fold_names, short_list
from hushgrad.gradients.machine import NO_LIMIT
from hushgrad.notebook import headline, paragraphs, table
from hushgrad.printable import printable
from hushgrad.text_table import text_table, wrapped

if TYPE_CHECKING:
    from hushgrad.checks.doctor.findings import Diagnosis, Finding, Use

WIDE = 110
"""From here on there is room for the places, the batch and the memory of each use."""

COLUMNS = ("parameters", "used in", "operator", "norm by", "calls", "T", "p × d", "share", "extra", "kept")
WHERE_WIDE = ("used in", "calls", "share", "kept")
NUMBERS = ("calls", "T", "p × d", "share", "extra", "kept")

SHOWN_PLACES = 4

NOTABLE = 0.1
"""A use whose extra operations are more than this share of an ordinary step's has a mark."""


def report(diagnosis: Diagnosis, width: int) -> str:
    """Return the whole report in lines of at most `width` characters."""
    lines = [*wrapped(_heading(diagnosis), width), ""]
    if diagnosis.uses:
        lines += [
            _table(diagnosis, width),
            "",
            *wrapped(_costs(diagnosis), width),
            "",
            *wrapped(_clip_rules(diagnosis), width),
            "",
        ]
    if diagnosis.operand_bytes and diagnosis.operand_budget_bytes < NO_LIMIT:
        lines += [*wrapped(_operands(diagnosis), width), ""]
    if diagnosis.is_sharded or diagnosis.are_sums_scattered:
        lines += [*wrapped(_sums(diagnosis), width), ""]
    if diagnosis.problems:
        lines += ["Problems", *_findings(diagnosis.problems, width), ""]
    if diagnosis.notes:
        lines += ["Notes", *_findings(diagnosis.notes, width), ""]
    return "\n".join([*lines, *wrapped(_verdict(diagnosis), width)])


def _heading(diagnosis: Diagnosis) -> str:
    batch = "not run" if diagnosis.batch_size is None else f"batch of {diagnosis.batch_size}"
    return f"{printable(diagnosis.model)}  {diagnosis.parameters:,} trainable values, {batch}"


def html_report(diagnosis: Diagnosis) -> str:
    """Return the whole report as a notebook shows it."""
    heads, rows = _rows(diagnosis, wide=True)
    said = [_heading(diagnosis)]
    if diagnosis.uses:
        said += [_costs(diagnosis), _clip_rules(diagnosis)]
    if diagnosis.operand_bytes and diagnosis.operand_budget_bytes < NO_LIMIT:
        said.append(_operands(diagnosis))
    if diagnosis.is_sharded or diagnosis.are_sums_scattered:
        said.append(_sums(diagnosis))
    found = [
        (
            finding.code or "note",
            printable(finding.where, 200),
            printable(finding.what, 2000),
            printable(finding.cure, 2000),
        )
        for finding in (*diagnosis.problems, *diagnosis.notes)
    ]
    parts = [headline(_verdict(diagnosis), good=diagnosis.is_ready), paragraphs(said)]
    parts += [table(heads, rows, NUMBERS)] if rows else []
    parts += [table(("code", "where", "what", "cure"), found)] if found else []
    return "".join(parts)


def _table(diagnosis: Diagnosis, width: int) -> str:
    heads, rows = _rows(diagnosis, wide=width >= WIDE)
    return text_table(heads, rows, width=width, right=NUMBERS)


def _rows(diagnosis: Diagnosis, *, wide: bool) -> tuple[list[str], list[list[str]]]:
    total = sum(use.ordinary_flops for use in diagnosis.uses)
    entries = [(f"{short_list(use.parameters)}\n{use.module}", _facts(use)) for use in diagnosis.uses]
    by_facts = {_facts(use): use for use in diagnosis.uses}
    rows = []
    for name, facts, count in fold_names(entries):
        use = by_facts[facts]  # type: ignore[index]
        parameters, _, module = name.partition("\n")
        times = f" ×{use.calls}" if use.calls > 1 and not wide else ""
        cells = {
            "parameters": printable(parameters, 200),
            "used in": printable(module, 120) or "(the model)",
            "operator": printable(use.operator) + times,
            "norm by": _way(use),
            "calls": str(use.calls * count),
            "T": _count(use.positions),
            "p × d": _matrix(use),
            "share": _percent(use.ordinary_flops * count, total),
            "extra": _extra(use, count, total),
            "kept": _bytes(use.memory_bytes * count),
        }
        rows.append([cell for head, cell in cells.items() if wide or head not in WHERE_WIDE])
    return [head for head in COLUMNS if wide or head not in WHERE_WIDE], rows


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


def _way(use: Use) -> str:
    """A fallback is named with its own cost factor."""
    return f"{use.way} ({use.cost:.0f}×)" if use.way.startswith("generic") else use.way


def _extra(use: Use, count: int, total: int) -> str:
    extra = (use.private_flops - use.ordinary_flops) * count
    return f"{'! ' if extra > NOTABLE * total else ''}+{_percent(extra, total)}"


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


def _costs(diagnosis: Diagnosis) -> str:
    cost = diagnosis.cost or 1.0
    return (
        f"A private step takes {cost:.2f}× the operations of an ordinary one in these uses (extra, estimated; ! where "
        f"it is more than {NOTABLE:.0%}), draws {diagnosis.parameters:,} values of noise, and keeps "
        f"{_bytes(diagnosis.memory_bytes)} until the clipped sums are formed. T: positions in each example. Ways are "
        f"chosen by the constants of this machine ({diagnosis.machine}; `hushgrad machine`) under a budget of "
        f"{_bytes(diagnosis.budget_bytes)}."
    )


def _operands(diagnosis: Diagnosis) -> str:
    """How long the inputs and output gradients of layers live."""
    whole, budget = _bytes(diagnosis.operand_bytes), _bytes(diagnosis.operand_budget_bytes)
    batch = f"On a batch of {diagnosis.batch_size} the operands of its layers, {whole} at most,"
    if not diagnosis.are_operands_let_go:
        return f"{batch} are within the budget of {budget} (operand_bytes): they are kept until the norms are known."
    return (
        f"{batch} are above the budget of {budget} (operand_bytes): norms and sums are taken inside the backward, "
        f"which is run twice for that (not for group-wise clip rules), and operands are let go one layer after "
        f"another. So it is where the backward begins with session.backward, session.loss or engine.per_example; that "
        f"of a scalar loss of the loop's own keeps them all."
    )


def _sums(diagnosis: Diagnosis) -> str:
    """What becomes of the clipped sums where the model lies on several processes."""
    whole, budget = _bytes(diagnosis.sum_bytes), _bytes(diagnosis.sum_budget_bytes)
    if diagnosis.are_sums_scattered:
        return (
            f"Under fully_shard its clipped sums, {whole} whole, are above the budget of {budget} (sum_bytes): they "
            f"are added up after each item of a logical batch, {whole} on the wire each time, and a process keeps its "
            f"part of them."
        )
    return (
        f"Under fully_shard its clipped sums stay whole in each process until the end of a logical batch: {whole}, "
        f"within the budget of {budget} (sum_bytes), and as much on the wire, once."
    )


def _clip_rules(diagnosis: Diagnosis) -> str:
    groups = ", ".join(f"{name} {count:,}" for name, count in diagnosis.norm_groups.items())
    return (
        f"Clip rules take one norm of each example, or one for each group: {groups}. These need no norm of the whole "
        f"model; but norms are taken when a physical batch ends, unless a budget has operands let go, so that no rule "
        f"makes this backward cheaper, and groups of a few small parameters cost calls."
    )


def _findings(findings: tuple[Finding, ...], width: int) -> list[str]:
    """Equal findings are one paragraph with all their places; the code stands before it, the cure below."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        places.setdefault((finding.code, finding.what, finding.cure), []).append(finding.where)
    margin = max(len(code) for code, _, _ in places)
    indent = margin + 2 if margin else 0
    lines = []
    for (code, what, cure), where in places.items():
        names = _places(where)
        said = (f"{names}: " if names else "") + printable(what, 2000)
        body = wrapped(said, width - indent)
        if cure:
            body += wrapped(f"→ {printable(cure, 2000)}", width - indent)
        lines += [f"{code if place == 0 else '':<{indent}}{line}" for place, line in enumerate(body)]
    return lines


def _places(where: list[str]) -> str:
    names = [name for name, _, _ in fold_names((name, None) for name in where if name)]
    shown = ", ".join(printable(name, 120) for name in names[:SHOWN_PLACES])
    return shown + (f" and {len(names) - SHOWN_PLACES} more" if len(names) > SHOWN_PLACES else "")


def _verdict(diagnosis: Diagnosis) -> str:
    if not diagnosis.is_ready:
        count = len(diagnosis.problems)
        return f"Not ready: {count} problem{'s' if count > 1 else ''} to solve before training."
    if diagnosis.batch_size is None:
        return "Nothing to refuse was found by reading. Give a batch to run it on."
    return "Ready to be made private."
