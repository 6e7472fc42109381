"""Reading data files that somebody else wrote."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO

from hushgrad.errors import TaskDataError
from hushgrad.printable import printable

MAX_BYTES = 1 << 28
CHUNK = 1 << 20
LONGEST_PATH = 400


def read_bytes(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """Return the content of a file, decompressed if its name ends in `.gz`.

    Raises TaskDataError if the file is missing, is not a plain file, is damaged, or gives more than `limit` bytes:
    reading stops there, so a small archive cannot fill the memory.
    """
    name = printable(path.name)
    if not path.is_file():
        raise TaskDataError(
            "it does not exist or is not a plain file", where=f"data file {name!r}", cure="Check --data"
        )
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                content = _read_up_to(stream, limit)
        else:
            with path.open("rb") as stream:
                content = _read_up_to(stream, limit)
    except PermissionError as error:
        raise TaskDataError(
            "this program may not read it", where=f"data file {name!r}", cure="Check its permissions"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TaskDataError(
            "it is not a complete gzip file", where=f"data file {name!r}", cure="Fetch it again"
        ) from error
    if content is None:
        raise TaskDataError(
            f"it must hold at most {limit} bytes, decompressed",
            where=f"data file {name!r}",
            cure="Split it, or drop columns",
        )
    return content


def _read_up_to(stream: BinaryIO | gzip.GzipFile, limit: int) -> bytes | None:
    """Return all of a binary stream, or None once it proves longer than `limit`."""
    content = bytearray()
    while chunk := stream.read(CHUNK):
        content += chunk
        if len(content) > limit:
            return None
    return bytes(content)


def require_existing(task: str, data: Path, *, folder: bool) -> None:
    """Raise TaskDataError, with the path, unless the data of a task are there: a folder, or also a file."""
    if not (data.is_dir() if folder else data.exists()):
        wanted = "folder" if folder else "file or folder"
        raise TaskDataError(
            f"its data must be an existing {wanted}, and {printable(str(data), LONGEST_PATH)!r} is none",
            where=f"task {task!r}",
            cure="Check --data",
        )


def first_existing(folder: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first of `names` that is a file in `folder`, with or without `.gz`; None if there is none."""
    for name in names:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return None
