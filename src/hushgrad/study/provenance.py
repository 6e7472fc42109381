"""When a run began, by whom, and on which data file: what a privacy officer asks beside the guarantee.

It lies in the run's own folder. The name of whoever ran it is there only if it was given. A digest of the data file is
computed from private records without noise: with it, whoever knows all records but one can test a guess of that one. So
no summary and no model card holds it, and a report shows it only where that is asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable
from hushgrad.study.directory import from_json

FORMAT = 1
DIGEST = "sha256"


def provenance_of(data: Path | None, by: str | None) -> dict[str, Any]:
    """Return what is known as a run begins; `data` is where its data lie, None where they came with a package.

    Raises InvalidArgumentError where the data cannot be read.
    """
    return {
        "format": FORMAT,
        "started": now(),
        "by": None if by is None else printable(by),
        "data": None if data is None else _described(data),
        "not_covered": [DIGEST],
    }


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Return what a run's file says; None for a run of a version that wrote none. Raises InvalidArgumentError."""
    if not path.exists():
        return None
    try:
        value = from_json(path.read_text(encoding="utf-8"))
        data = value["data"]
        kept = None if data is None else {key: data[key] for key in ("name", "files", "bytes", DIGEST)}
        return {"started": value["started"], "by": value["by"], "data": kept}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidArgumentError(
            "the file is damaged",
            where=path.name,
            cure="Restore it from a copy, or remove it: the report then lacks it",
        ) from error


def data_of(data: Mapping[str, Any] | None, task: str) -> tuple[str, str]:
    """Return the name of a run's data and what tells them from others: a digest, or the task that they came with."""
    return (f"task {task}", f"task {task}") if data is None else (str(data["name"]), str(data[DIGEST]))


def now() -> str:
    """Return the date and the time of day, UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _described(data: Path) -> dict[str, Any]:
    """Return the name of a file or a folder, without where it lies, its size and its SHA-256.

    That of a folder is of the lines "digest  name" of its files, sorted by name, as `sha256sum` prints them.
    """
    try:
        if data.is_file():
            return {"name": printable(data.name), "files": 1, "bytes": data.stat().st_size, DIGEST: file_digest(data)}
        files = sorted(Path(place) / name for place, _, names in os.walk(data) for name in names)
        lines = [f"{file_digest(file)}  {file.relative_to(data).as_posix()}\n" for file in files if file.is_file()]
        size = sum(file.stat().st_size for file in files if file.is_file())
        digest = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
        return {"name": printable(data.resolve().name), "files": len(lines), "bytes": size, DIGEST: digest}
    except OSError as error:
        raise InvalidArgumentError(
            f"the data cannot be read ({error.strerror})", where="--data", cure="Check the path"
        ) from error


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
