"""Tables of text cells: CSV and TSV files, compressed or not, and files of typed columns."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hushgrad.errors import TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks.files import MAX_BYTES, read_bytes
from hushgrad.study.tasks.tables.typed import is_typed, typed_cells

MAX_COLUMNS = 4096
DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text cells, each as long as `columns`; `delimiter` stood between the cells of the file."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    delimiter: str = ","

    def column(self, name: str) -> tuple[str, ...]:
        """Return the cells of one column. Raises TaskDataError if there is none of that name."""
        position = self.position(name)
        return tuple(row[position] for row in self.rows)

    def at(self, rows: Iterable[int]) -> Table:
        """Return the table of some of its rows, by their places."""
        return replace(self, rows=tuple(self.rows[row] for row in rows))

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


def read_table(
    path: Path, *, delimiter: str | None = None, encoding: str | None = None, limit: int = MAX_BYTES
) -> Table:
    """Return the table in a CSV file (TSV, if the name says so) whose first line names the columns; of a Parquet, Arrow
    or Feather file, and of a folder that Hugging Face's `datasets` has saved, if pyarrow is installed.

    Cells are stripped of surrounding blanks and empty lines are skipped. `delimiter` None is the one that divides the
    first line into most names. `encoding` None is UTF-8, or UTF-16 where the file begins with its mark.

    Raises TaskDataError for what is not text in that encoding, for a header that is empty or names a column twice, and
    for a line with too few or too many cells.
    """
    name = printable(path.name)
    if is_typed(path):
        return make_table(*typed_cells(path, limit), name)
    text = _text(path, encoding, limit)
    used = delimiter or ("\t" if ".tsv" in path.suffixes[-2:] else found_delimiter(text))
    lines = _lines(text, used, name)
    if not lines:
        raise TaskDataError(
            "it is empty, and its first line must name the columns", where=repr(name), cure="Add a header line and rows"
        )
    return make_table(tuple(lines[0][1]), lines[1:], name, used)


def read_lines(path: Path, *, limit: int = MAX_BYTES) -> list[tuple[int, list[str]]]:
    """Return (line number, cells) for each line of a file with commas between cells that is not empty."""
    return _lines(_text(path, None, limit), ",", printable(path.name))


def found_delimiter(text: str) -> str:
    """Return the delimiter that divides the first line into most names, a comma where none does.

    The first line names the columns and is public; nothing else is looked at.
    """
    first = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").partition("\n")[0])
    return max(DELIMITERS, key=first.count)


def _text(path: Path, encoding: str | None, limit: int) -> str:
    content = read_bytes(path, limit=limit)
    used = encoding or ("utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    try:
        text = content.decode(used)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding is None else encoding
        raise TaskDataError(
            f"it must be {name} text, and byte {error.start} is not",
            where=repr(printable(path.name)),
            cure="Convert it to UTF-8, or give hushgrad train and data its encoding: --encoding latin-1 (Western "
            "Europe), cp1252 (Windows there)",
        ) from None
    return text.removeprefix("\ufeff")


def _lines(text: str, delimiter: str, name: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
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


def make_table(columns: tuple[str, ...], lines: list[tuple[int, list[str]]], name: str, delimiter: str = ",") -> Table:
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
                cure="Repair that line; where another character divides the cells, give hushgrad train --delimiter",
            )
    if not lines:
        raise TaskDataError("it has no rows under its header", where=repr(name), cure="Add rows")
    return Table(columns, tuple(tuple(cells) for _, cells in lines), delimiter)
