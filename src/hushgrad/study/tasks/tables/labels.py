"""The classes of rows: the cells of the target column, or intervals between public edges for its numbers."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass

from hushgrad.errors import TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks.table import Table
from hushgrad.study.tasks.tables.spelling import Spelling

MAX_CLASSES = 1000
MOST_NUMBERS = 20


@dataclass(frozen=True, slots=True)
class Labels:
    """How the class of a row is told; `edges` are rising numbers, or none."""

    target: str
    edges: tuple[float, ...]
    spelling: Spelling

    @property
    def intervals(self) -> tuple[str, ...] | None:
        """The names of the classes between the edges; None without edges."""
        if not self.edges:
            return None
        between = [f"{low:g} to below {high:g}" for low, high in itertools.pairwise(self.edges)]
        return (f"below {self.edges[0]:g}", *between, f"{self.edges[-1]:g} and more")

    def of(self, table: Table) -> tuple[str, ...]:
        """Return the class of each row. Raises TaskDataError for a row without one."""
        cells = table.column(self.target)
        if any(self.spelling.is_missing(cell) for cell in cells):
            raise TaskDataError("every row needs a label", where=self._where, cure="Remove the rows without one")
        names = self.intervals
        if names is None:
            return cells
        numbers = [self.spelling.number(cell) for cell in cells]
        found = [number for number in numbers if number is not None]
        if len(found) < len(cells):
            raise TaskDataError(
                "it is divided by edges, and holds a cell that is not a number",
                where=self._where,
                cure="Leave --target-edges out, or repair the column",
            )
        return tuple(names[bisect.bisect_right(self.edges, number)] for number in found)

    def found_in(self, *labels: tuple[str, ...]) -> tuple[str, ...]:
        """Return the different labels, sorted. Raises TaskDataError if they are measurements rather than classes."""
        different = sorted(set().union(*labels))
        if len(different) > MOST_NUMBERS and all(self.spelling.number(label) is not None for label in different):
            raise TaskDataError(
                f"it holds numbers, more than {MOST_NUMBERS} different ones, and this task classifies: it does not "
                "predict numbers",
                where=self._where,
                cure="Say which numbers are one class, such as by --target-edges 30,60; or name the --classes",
            )
        if not 2 <= len(different) <= MAX_CLASSES:
            raise TaskDataError(
                f"this task classifies: the target must have 2 to {MAX_CLASSES} different labels, got {len(different)}",
                where=self._where,
                cure="Choose another --target",
            )
        return tuple(different)

    @property
    def _where(self) -> str:
        return f"column {printable(self.target)!r}"
