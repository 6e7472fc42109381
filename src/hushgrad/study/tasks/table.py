"""Tables of text cells: CSV and TSV files, compressed or not."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from hushgrad.errors import TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks.files import MAX_BYTES, read_bytes

MAX_COLUMNS = 4096
MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text cells, each as long as `columns`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> tuple[str, ...]:
        """Return the cells of one column. Raises TaskDataError if there is none of that name."""
        position = self.position(name)
        return tuple(row[position] for row in self.rows)

    def position(self, name: str) -> int:
        """Return where the column called `name` is. Raises TaskDataError, naming the columns there are."""
        if name not in self.columns:
            there = ", ".join(printable(column) for column in self.columns[:40])
            raise TaskDataError(
                f"no column has this name; the columns are {there}",
                where=f"column {printable(name)!r}",
                cure="Choose one of these",
            )
        return self.columns.index(name)


def is_missing(cell: str) -> bool:
    """Is the cell empty or one of the usual marks for a missing value?"""
    return cell.lower() in MISSING


def read_table(path: Path, *, limit: int = MAX_BYTES) -> Table:
    """Return the table in a CSV file (TSV, if the name says so) whose first line names the columns.

    Cells are stripped of surrounding blanks and empty lines are skipped. Raises TaskDataError for what is not UTF-8
    text, for a header that is empty or names a column twice, and for a line with too few or too many cells.
    """
    name = printable(path.name)
    lines = read_lines(path, limit=limit)
    if not lines:
        raise TaskDataError(
            "it is empty, and its first line must name the columns", where=repr(name), cure="Add a header line and rows"
        )
    return make_table(tuple(lines[0][1]), lines[1:], name)


def read_lines(path: Path, *, limit: int = MAX_BYTES) -> list[tuple[int, list[str]]]:
    """Return (line number, cells) for each line of a CSV or TSV file that is not empty."""
    name = printable(path.name)
    tabs = ".tsv" in path.suffixes[-2:]
    try:
        text = read_bytes(path, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskDataError(
            f"it must be UTF-8 text, and byte {error.start} is not", where=repr(name), cure="Convert it to UTF-8"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",", skipinitialspace=True)
    lines = []
    try:
        for cells in reader:
            if cells and any(cell.strip() for cell in cells):
                lines.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise TaskDataError(
            f"not readable as CSV ({error})", where=f"{name!r}, line {reader.line_num}", cure="Repair that line"
        ) from None
    return lines


def make_table(columns: tuple[str, ...], lines: list[tuple[int, list[str]]], name: str) -> Table:
    """Return a table from column names and numbered lines, each checked to have one cell per column."""
    if len(columns) > MAX_COLUMNS:
        raise TaskDataError(
            f"it must have at most {MAX_COLUMNS} columns, got {len(columns)}", where=repr(name), cure="Drop columns"
        )
    if "" in columns or len(set(columns)) != len(columns):
        raise TaskDataError(
            "the first line must name each column, and each only once", where=repr(name), cure="Repair the first line"
        )
    for number, cells in lines:
        if len(cells) != len(columns):
            raise TaskDataError(
                f"expected {len(columns)} cells, got {len(cells)}",
                where=f"{name!r}, line {number}",
                cure="Repair that line",
            )
    if not lines:
        raise TaskDataError("it has no rows under its header", where=repr(name), cure="Add rows")
    return Table(columns, tuple(tuple(cells) for _, cells in lines))
