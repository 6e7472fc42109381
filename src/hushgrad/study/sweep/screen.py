"""The display of a sweep: a live table on a terminal, one line per finished run elsewhere."""

from __future__ import annotations

import json
from types import TracebackType

from hushgrad.extras import needs_extra
from hushgrad.printable import printable
from hushgrad.study.progress import epsilon_text, share_text
from hushgrad.study.sweep.folder import SweepFolder
from hushgrad.study.sweep.plan import SweepPlan
from hushgrad.study.sweep.table import Group, Row, gather, is_ordinary, read_rows

with needs_extra("study", "progress on the screen"):
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

REFRESH_PER_SECOND = 2
STYLES = {"completed": "green", "running": "bold", "failed": "red", "waiting": "dim"}


def new_console() -> Console:
    """Return the console that a sweep is shown on."""
    return Console()


class SweepScreen:
    """Shows a sweep; use as a context manager and give `show` to `run_sweep`."""

    def __init__(self, console: Console, folder: SweepFolder, plan: SweepPlan) -> None:
        self._console, self._folder, self._plan = console, folder, plan
        self._running: frozenset[str] = frozenset()
        self._said = {row.name for row in read_rows(folder, plan) if row.status == "completed"}
        self._failures_said: set[str] = set()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._calls = 0

    def __enter__(self) -> SweepScreen:
        if self._said:
            self._say(f"{len(self._said)} of {len(self._plan.runs)} runs were finished before; they stay as they are.")
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, running: frozenset[str]) -> None:
        """Show where the sweep stands; `running` are the names of the running runs."""
        changed, self._running = running != self._running, running
        self._calls += 1
        if self._live is not None:
            if changed or self._calls % 5 == 0:
                self._live.update(self._live_table(), refresh=True)
        elif changed:
            self._say_news()

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _say_news(self) -> None:
        for row in read_rows(self._folder, self._plan, self._running):
            if row.status == "completed" and row.name not in self._said:
                self._said.add(row.name)
                self._say(f"[{len(self._said)}/{len(self._plan.runs)}] {_result_line(row)}")
            elif row.status == "failed" and row.name not in self._failures_said:
                self._failures_said.add(row.name)
                self._say(f"FAILED {printable(row.name)}: {row.error}")

    def _live_table(self) -> Table:
        rows = read_rows(self._folder, self._plan, self._running)
        table = Table(title=f"{sum(row.status == 'completed' for row in rows)} of {len(rows)} runs finished")
        for heading in ("run", "noise", "seed", "status", "ε", "test accuracy"):
            table.add_column(heading)
        room = max(5, self._console.height - 8)
        # What is going on stays in sight: the running rows and their neighbours.
        first = next((place for place, row in enumerate(rows) if row.status == "running"), max(0, len(rows) - room))
        start = max(0, min(first - room // 2, len(rows) - room))
        for row in rows[start : start + room]:
            status = self._progress_of(row) if row.status == "running" else row.status
            shown = (printable(row.series), row.aim, str(row.seed), status, _epsilon(row), _accuracy(row.test_accuracy))
            table.add_row(*(Text(cell, style=STYLES[row.status]) for cell in shown))
        return table

    def _progress_of(self, row: Row) -> str:
        """Return where a running run stands, from the last line that it measured."""
        try:
            last = (self._folder.working(row.name) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
            return f"step {json.loads(last)['step']}"
        except (OSError, ValueError, IndexError, KeyError):
            return "running"


def _result_line(row: Row) -> str:
    beside = share_text(row.largest_class)
    parts = (
        printable(row.series),
        row.aim,
        f"seed {row.seed}",
        f"test accuracy {_accuracy(row.test_accuracy)}{beside}",
    )
    return "  ".join((*parts, _epsilon(row)))


def _accuracy(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _epsilon(row: Row) -> str:
    if row.status != "completed":
        return ""
    return epsilon_text(None if row.noise_multiplier is None else row.epsilon)


def spread_text(group: Group) -> str:
    """Return the mean and the spread over seeds."""
    return f"{group.mean:.1%}" if group.spread is None else f"{group.mean:.1%} ± {100 * group.spread:.1f}"


def show_results(console: Console, rows: list[Row]) -> None:
    """Print the table over seeds, and on a terminal the failures: elsewhere each was said when it came."""
    table = Table("", "noise", "ε", "runs", "test accuracy", "lowest", "highest", "largest class")
    for group in gather(rows):
        epsilon = epsilon_text(None if is_ordinary(group) else group.epsilon)
        shown = (printable(group.series), group.aim, epsilon, str(group.runs), spread_text(group))
        ends = (f"{group.lowest:.1%}", f"{group.highest:.1%}", _accuracy(group.largest_class))
        table.add_row(*map(Text, (*shown, *ends)))
    if table.row_count:
        console.print(table)
    for row in rows:
        if row.status == "failed" and console.is_terminal:
            console.print(f"FAILED {row.name}: {row.error}", markup=False, highlight=False, soft_wrap=True)
