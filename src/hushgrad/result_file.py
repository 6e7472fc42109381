"""A file that long work ends with: looked at before the work, so that nothing is measured for a file that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable

_LONGEST = 400


def claim_file(where: str, path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that can be written: its folder is made where it is missing.

    `where` is the argument or option that names the file. Raises InvalidArgumentError for a path that is no file's, and
    for one that this program may not write to. What lies there stays as it is.
    """
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise _refused(where, file, "it is a folder")
        written_to = file if file.exists() else file.parent
        if not os.access(written_to, os.W_OK):
            raise _refused(where, file, "this program may not write there")
    except OSError as error:
        raise _refused(where, file, error.strerror or type(error).__name__) from error
    return file


def write_file(where: str, file: Path, content: str | bytes) -> None:
    """Write what belongs in a claimed file. Raises InvalidArgumentError where that has become impossible since."""
    try:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise _refused(where, file, error.strerror or type(error).__name__) from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds either the old content or the new, also after a crash."""
    beside = path.with_name(f".{path.name}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _refused(where: str, file: Path, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{printable(str(file), _LONGEST)} cannot be written: {why}", where=where, cure="Choose another file"
    )
