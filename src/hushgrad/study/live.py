"""A bar that moves while a run goes on: two lines on a terminal, an HTML bar in a notebook, nothing elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

from hushgrad.extras import needs_extra
from hushgrad.notebook import escaped

with needs_extra("study", "progress on the screen"):
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

LEAST_SECONDS = 0.2
"""A notebook's bar is drawn again after so much time at the earliest."""


class Bar(Protocol):
    """Shows how far a run is. `total` None: not known yet."""

    def start(self) -> None:
        """Show it."""

    def stop(self) -> None:
        """Leave it as it is, or take it away."""

    def update(self, *, total: int | None = None, completed: int | None = None, description: str | None = None) -> None:
        """Change what is given."""


def bar_for(console: Console) -> Bar:
    """Return the bar that suits where the output goes."""
    if console.is_jupyter:
        return NotebookBar()
    return TerminalBar(console) if console.is_terminal else NoBar()


class NoBar:
    """For files and pipes."""

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    def update(self, *, total: int | None = None, completed: int | None = None, description: str | None = None) -> None:
        """Do nothing."""


class _TwoLines(Progress):
    """The bar on a line of its own, so that it has room in 80 columns; below it what was measured last."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            if task.total is not None:
                yield self.make_tasks_table([task])
            yield Text(task.description, overflow="ellipsis", no_wrap=True)


class TerminalBar:
    """For terminals: steps, a bar and the time that is left."""

    def __init__(self, console: Console) -> None:
        self._progress = _TwoLines(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
        self._task = self._progress.add_task("", total=None)

    def start(self) -> None:
        """Show it."""
        self._progress.start()

    def stop(self) -> None:
        """Leave it as it is."""
        self._progress.stop()

    def update(self, *, total: int | None = None, completed: int | None = None, description: str | None = None) -> None:
        """Change what is given."""
        self._progress.update(self._task, total=total, completed=completed, description=description)


class NotebookBar:
    """For notebooks: the browser's own bar in one output that is replaced."""

    def __init__(self) -> None:
        self._total: int | None = None
        self._completed, self._description = 0, ""
        self._handle: Any = None
        self._began = self._drawn = 0.0

    def start(self) -> None:
        """Show it."""
        from IPython.display import HTML, display

        self._began = time.monotonic()
        self._handle = display(HTML(self.html()), display_id=True)

    def stop(self) -> None:
        """Draw it a last time."""
        self._draw()

    def update(self, *, total: int | None = None, completed: int | None = None, description: str | None = None) -> None:
        """Change what is given."""
        self._total = self._total if total is None else total
        self._completed = self._completed if completed is None else completed
        self._description = self._description if description is None else description
        if time.monotonic() - self._drawn >= LEAST_SECONDS:
            self._draw()

    def html(self) -> str:
        """Return the bar as HTML; without a value while the total is not known, so that it moves by itself."""
        ends = "" if self._total is None else f' value="{self._completed}" max="{self._total}"'
        steps = "" if self._total is None else f" step {self._completed}/{self._total}{self._left()}"
        return f"<div><progress{ends}></progress>{steps}<br>{escaped(self._description)}</div>"

    def _left(self) -> str:
        if self._total is None or not 0 < self._completed < self._total:
            return ""
        seconds = (time.monotonic() - self._began) * (self._total / self._completed - 1)
        return f", {int(seconds) // 60}:{int(seconds) % 60:02d} left"

    def _draw(self) -> None:
        if self._handle is not None:
            from IPython.display import HTML

            self._drawn = time.monotonic()
            self._handle.update(HTML(self.html()))
