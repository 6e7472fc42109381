"""The Adult folder of the UCI repository: adult.data, adult.test and adult.names, compressed or not.

The `.names` file is the data set's public description. Column names, which columns are categorical, and the two classes
are read from it, so that none of them is learned from the records.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hushgrad.errors import TaskDataError
from hushgrad.study.tasks.files import first_existing, read_bytes
from hushgrad.study.tasks.table import Table, make_table, read_lines

TARGET = "income"
MAX_NAMES_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Description:
    """What the `.names` file says: columns in order, those with listed values, and the classes."""

    columns: tuple[str, ...]
    categorical: frozenset[str]
    classes: tuple[str, ...]
    target_names: frozenset[str] = frozenset({TARGET})


def is_adult(folder: Path) -> bool:
    """Is this a folder of Adult files?"""
    return all(first_existing(folder, (name,)) is not None for name in ("adult.data", "adult.test", "adult.names"))


def read_adult(folder: Path) -> tuple[Table, Table, Description]:
    """Return the training table, the test table and the description; the target column is called "income".

    The `.names` file does not name the target. Where the records have a header line, the name found there is listed in
    `target_names` as well.
    """
    description = parse_names(read_bytes(_path(folder, "adult.names"), limit=MAX_NAMES_BYTES).decode("latin-1"))
    train, names_in_train = _records(folder, "adult.data", description)
    test, names_in_test = _records(folder, "adult.test", description)
    return train, test, replace(description, target_names=frozenset({TARGET, *names_in_train, *names_in_test}))


def parse_names(text: str) -> Description:
    """Return what a `.names` file in C4.5 form declares.

    After comments (`|` to the end of the line) come the classes, ended by a full stop, then one `column: values.` line
    per column, where the values are `continuous` or a list. Raises TaskDataError if either part is missing.
    """
    lines = [line.split("|")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if len(lines) < 2 or ":" in lines[0] or not all(":" in line for line in lines[1:]):
        raise TaskDataError(
            "the file must list the classes, then one 'column: values.' line for each column",
            where="adult.names",
            cure="Fetch the file again",
        )
    classes = tuple(name.strip() for name in lines[0].rstrip(".").split(","))
    declared = [line.split(":", 1) for line in lines[1:]]
    categorical = {name.strip() for name, values in declared if values.strip(" .") != "continuous"}
    return Description(tuple(name.strip() for name, _ in declared), frozenset(categorical), classes)


def _path(folder: Path, name: str) -> Path:
    path = first_existing(folder, (name,))
    if path is None:
        raise TaskDataError(f"it lacks {name}", where="the Adult folder", cure="Put the missing file there")
    return path


def _records(folder: Path, name: str, description: Description) -> tuple[Table, tuple[str, ...]]:
    """Return one file as a table, and the target's name if the file has a header line.

    A header line, a `|` comment line and the dots after test labels are taken away.
    """
    lines = [(number, cells) for number, cells in read_lines(_path(folder, name)) if not cells[0].startswith("|")]
    has_header = bool(lines) and tuple(lines[0][1][:-1]) == description.columns
    target_name = (lines[0][1][-1],) if has_header else ()
    records = [(number, [*cells[:-1], cells[-1].rstrip(".")]) for number, cells in lines[has_header:]]
    return make_table((*description.columns, TARGET), records, name), target_name
