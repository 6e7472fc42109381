"""Files of typed columns, as text cells: Parquet, Feather and Arrow, and folders that Hugging Face's `datasets` saved.

pyarrow reads them; no code and no pickle in them is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from hushgrad.errors import TaskDataError
from hushgrad.extras import needs_extra
from hushgrad.printable import printable

SUFFIXES = (".parquet", ".pq", ".feather", ".arrow", ".ipc")
STATE = "state.json"


def is_typed(path: Path) -> bool:
    """Is this a file of typed columns by its name, or a folder of Arrow files?"""
    return path.suffix.lower() in SUFFIXES or (path / STATE).is_file()


def typed_cells(path: Path, limit: int) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    """Return the names of the columns and (number of the row, cells) of each row.

    Raises TaskDataError for a file that is missing, damaged or of more than `limit` bytes, and for a column that holds
    anything but texts, numbers, truth values and dates.
    """
    with needs_extra("tables", "a file of typed columns"):
        import pyarrow  # noqa: F401
    files = [path] if path.is_file() else _files_of(path)
    if sum(file.stat().st_size for file in files) > limit:
        raise TaskDataError(f"it must hold at most {limit} bytes", where=_name(path), cure="Split it, or drop columns")
    columns: tuple[str, ...] = ()
    rows: list[list[str]] = []
    for file in files:
        with _damaged_is_told(path):
            table = _read(file)
        columns = tuple(map(str, table.column_names))
        cells = [[_text(value, name) for value in table.column(name).to_pylist()] for name in columns]
        rows += [list(row) for row in zip(*cells, strict=True)]
    return columns, list(enumerate(rows, start=1))


def _text(value: Any, column: str) -> str:
    return str(value) if isinstance(value, bool) else cell_text(value, column, "")


def cell_text(value: Any, column: str, where: str) -> str:
    """Return a value as a file of text would hold it: "" for None, a whole float as the int that it equals.

    Raises TaskDataError, naming `where` and the column, for what is no text, number or date.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, date):  # a datetime is one, too
        return value.isoformat()
    if isinstance(value, int | float | Decimal | np.integer | np.floating) and not isinstance(value, bool):
        is_whole = not isinstance(value, int | np.integer) and np.isfinite(float(value)) and value == int(value)
        return str(int(value)) if is_whole else str(value)
    raise TaskDataError(
        f"must be text, an int, a float, a date or None, got {type(value).__name__}",
        where=f"{where}column {printable(column)!r}",
        cure="Write it as the file of the training records did; None is a missing value",
    )


def _files_of(folder: Path) -> list[Path]:
    """Return the Arrow files of a folder that `datasets` has saved."""
    try:
        named = [str(part["filename"]) for part in json.loads((folder / STATE).read_bytes())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise TaskDataError(
            f"its {STATE} does not list the files", where=_name(folder), cure="Save it anew by save_to_disk"
        ) from None
    files = [folder / Path(name).name for name in named]
    if not files or not all(file.is_file() for file in files):
        raise TaskDataError("it lacks a file", where=_name(folder), cure="Save it anew by save_to_disk")
    return files


def _read(file: Path) -> Any:
    import pyarrow as pa

    if file.suffix.lower() in (".parquet", ".pq"):
        import pyarrow.parquet

        return pyarrow.parquet.read_table(file, memory_map=False)
    with pa.OSFile(str(file), "rb") as source:
        try:
            return pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()


@contextmanager
def _damaged_is_told(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises into an error that shows no value."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError):
        raise TaskDataError(
            "it is missing, or no whole file of its kind", where=_name(path), cure="Write it anew"
        ) from None


def _name(path: Path) -> str:
    return repr(printable(path.name))
