"""The silent zoo on one page: kinds of silent failure, and what became of their programs.

`make scoreboard` prints the table; `python tests/zoo/silent/scoreboard.py` takes a word that kinds or programs must
hold, `--list` for a line of each program, and `--write` for the table of docs/probe.md. Exit status 1 if a leaky
program is silent or ends untyped, or a clean one does not train.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import batch_statistics
import bypassed_calls
import declared_constants
import gradient_mixing
import gradient_penalties
import hidden_inputs
import joined_batches
import kept_by_loops
import kept_state
import later_batches
import later_calls
import layout_coincidences
import loop_faults
import loop_writes
import loops_backwards
import number_limits
import other_parts
import outside_torch
import own_scalar_losses
import padded_lengths
import quiet_randomness
import relative_tolerances
import run_accounts
import selected_rows
import shared_places
import sixteen_bits
import streams
import taken_memory
import torch
import written_backward
from silent_programs import EXACT, OUTCOMES, REFUSED, SILENT, TRUSTED, UNTYPED, Found, Kind, Program

from hushgrad.text_table import text_table

KINDS: tuple[Kind, ...] = (
    padded_lengths.KIND,
    joined_batches.KIND,
    hidden_inputs.KIND,
    outside_torch.KIND,
    batch_statistics.KIND,
    taken_memory.KIND,
    other_parts.KIND,
    bypassed_calls.KIND,
    later_calls.KIND,
    layout_coincidences.KIND,
    declared_constants.KIND,
    selected_rows.KIND,
    shared_places.KIND,
    quiet_randomness.KIND,
    gradient_mixing.KIND,
    gradient_penalties.KIND,
    relative_tolerances.KIND,
    kept_state.KIND,
    written_backward.KIND,
    own_scalar_losses.KIND,
    sixteen_bits.KIND,
    later_batches.KIND,
    number_limits.KIND,
    run_accounts.KIND,
    streams.KIND,
    loop_faults.KIND,
    loop_writes.KIND,
    loops_backwards.KIND,
    kept_by_loops.KIND,
)

PAGE = Path(__file__).parents[3] / "docs" / "probe.md"
BEGIN, END = "<!-- silent:begin -->", "<!-- silent:end -->"
FALSE_ALARMS = "false alarms"
MANY = 10
"""After so many programs what they left is collected."""


@dataclass(frozen=True)
class Row:
    """One program in one of its ways."""

    kind: Kind
    program: Program
    way: str
    found: Found

    @property
    def is_fault(self) -> bool:
        """Whether a leaky program was silent or ended untyped, or a clean one did not train."""
        return self.found.outcome != EXACT if self.program.is_clean else self.found.outcome in (SILENT, UNTYPED)


def played(kinds: Iterable[Kind] = KINDS, word: str = "") -> list[Row]:
    """Run the programs whose kind or name holds `word`."""
    torch.set_num_threads(1)
    chosen = [
        (kind, program, way)
        for kind in kinds
        for program in kind.programs
        if word in kind.title or word in program.name
        for way in program.ways
    ]
    rows = []
    for number, (kind, program, way) in enumerate(chosen):
        rows.append(Row(kind, program, way, program.run(way)))
        if number % MANY == 0:
            gc.collect()  # a refused session is a cycle, which Python finds by the number of objects, not by their size
    return rows


def played_in(jobs: int, word: str = "") -> list[Row]:
    """Return what `played` returns of all kinds, from so many processes, each of which plays one kind at a time."""
    if jobs < 2:
        return played(word=word)
    wanted = [
        number
        for number, kind in enumerate(KINDS)
        if word in kind.title or any(word in program.name for program in kind.programs)
    ]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        found = list(pool.map(_found_of, wanted, [word] * len(wanted)))
    return [
        Row(KINDS[number], KINDS[number].programs[program], way, one)
        for number, rows in zip(wanted, found, strict=True)
        for program, way, one in rows
    ]


def _found_of(kind: int, word: str) -> list[tuple[int, str, Found]]:
    places = {id(program): place for place, program in enumerate(KINDS[kind].programs)}
    return [(places[id(row.program)], row.way, row.found) for row in played(KINDS[kind : kind + 1], word)]


def of_kinds(rows: list[Row]) -> list[tuple[Kind, list[Row]]]:
    """Return the rows of each kind that has some."""
    return [(kind, mine) for kind in KINDS if (mine := [row for row in rows if row.kind is kind])]


def counts(rows: list[Row]) -> list[str]:
    """Return how many leaky runs ended in each of `OUTCOMES`, and how many clean ones there are and were refused."""
    leaky = Counter(row.found.outcome for row in rows if not row.program.is_clean)
    clean = [row for row in rows if row.program.is_clean]
    return [*(str(leaky[outcome]) for outcome in OUTCOMES), str(len(clean)), str(sum(row.is_fault for row in clean))]


def board(rows: list[Row]) -> str:
    """Return the scoreboard as plain text."""
    heads = ["kind", *OUTCOMES, "clean", FALSE_ALARMS]
    cells = [[kind.title, *counts(mine)] for kind, mine in of_kinds(rows)]
    return text_table(heads, [*cells, ["all", *counts(rows)]], right=heads[1:])


def listed(rows: list[Row]) -> str:
    """Return a line for each run: what became of it, S or the code of its error, and the conditions stated."""
    heads = ["kind", "program", "way", "is", "outcome", "S or error", "stated"]
    return text_table(
        heads,
        [
            [
                row.kind.title,
                row.program.name,
                row.way,
                "clean" if row.program.is_clean else "leaky",
                f"{row.found.outcome}{' !' if row.is_fault else ''}",
                row.found.error or f"{row.found.moved:.4g}",
                row.found.note or ", ".join(sorted(row.found.conditions)),
            ]
            for row in rows
        ],
    )


HEADS = (
    "kind", "examined", "when", "on trust",
    "leaky: refused", "exact", "on trust and said", "silent or untyped", "worst S of the exact",
    "clean: train", "do not",
)  # fmt: skip


def markdown(rows: list[Row]) -> str:
    """Return the table of docs/probe.md: a row for each kind, of runs."""
    lines = [HEADS, ("---",) * len(HEADS)]
    for kind, mine in of_kinds(rows):
        leaky = [row.found for row in mine if not row.program.is_clean]
        refused, exact, told = (sum(found.outcome == one for found in leaky) for one in (REFUSED, EXACT, TRUSTED))
        worst = max((found.moved for found in leaky if found.outcome == EXACT), default=None)
        false = sum(row.is_fault for row in mine if row.program.is_clean)
        figures = (refused, exact, told, len(leaky) - refused - exact - told, "–" if worst is None else f"{worst:.3f}",
                   len(mine) - len(leaky) - false, false)  # fmt: skip
        lines.append((kind.title, kind.examined, kind.when, kind.trusted, *map(str, figures)))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def between_markers(page: str) -> str:
    """Return the table that a page holds."""
    return page.split(BEGIN + "\n")[1].split("\n" + END)[0]


def with_table(page: str, table: str) -> str:
    """Return a page with its table replaced."""
    head, rest = page.split(BEGIN + "\n")
    return head + BEGIN + "\n" + table + "\n" + END + rest.split(END, 1)[1]


def main() -> int:
    """Print the scoreboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="run only kinds and programs whose names hold this")
    parser.add_argument("--list", action="store_true", help="print each program")
    parser.add_argument("--write", action="store_true", help="write the table of docs/probe.md")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; by default all cores")
    options = parser.parse_args()
    start = time.perf_counter()
    rows = played_in(options.jobs, options.word)
    if options.list:
        print(listed(rows), end="\n\n")
    print(board(rows))
    faults = [row for row in rows if row.is_fault]
    for row in faults if not options.list else []:
        kind = "clean" if row.program.is_clean else "leaky"
        moved = row.found.error or f"S = {row.found.moved:.4g}"
        print(f"  {row.found.outcome}, {kind}: {row.kind.title}: {row.program.name} [{row.way}]: {moved}")
    programs = {(row.kind.title, row.program.name) for row in rows}
    print(f"{len(programs)} programs, {len(rows)} runs, {time.perf_counter() - start:.0f} s, {len(faults)} faults")
    if options.write and not options.word:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), markdown(rows)), encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
