"""Files in folders that are named after their classes: `CLASS/*`, or `train/CLASS/*` and `test/CLASS/*`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hushgrad.errors import TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks.task import fixed_split

MOST_FILES = 1_000_000


@dataclass(frozen=True, slots=True)
class Filed:
    """Paths with the positions of their classes in `classes`."""

    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...]
    classes: tuple[str, ...]


def read_folders(folder: Path, suffixes: tuple[str, ...]) -> Filed:
    """Return the files with one of the `suffixes` (lower case, with the dot) under each class's folder.

    Without `train` and `test` the files are split 80 to 20, always in the same way. Links are not followed. Raises
    TaskDataError where there are fewer than two classes or too few files.
    """
    divided = (folder / "train").is_dir() and (folder / "test").is_dir()
    parts = [folder / "train", folder / "test"] if divided else [folder]
    classes = tuple(sorted({child.name for part in parts for child in part.iterdir() if child.is_dir()}))
    if len(classes) < 2:
        raise TaskDataError(
            f"it must hold one folder for each class, two at least, got {len(classes)}",
            where="the data folder",
            cure="Put the files into folders named after their classes",
        )
    found = [_files(part, classes, suffixes) for part in parts]
    if divided:
        train, test = found
    else:
        kept, held_out = fixed_split(len(found[0]))
        train, test = ([found[0][int(place)] for place in places] for places in (kept, held_out))
    if not train or not test:
        raise TaskDataError(
            f"it must hold files for training and files for testing ({', '.join(suffixes)})",
            where="the data folder",
            cure="Add files to both parts",
        )
    absent = [name for label, name in enumerate(classes) if all(label != of for _, of in train)]
    if absent:
        raise TaskDataError(
            f"no training file is of class {', '.join(map(printable, absent))}",
            where="the data folder",
            cure="Remove the folder of that class, or add training files",
        )
    return Filed(tuple(train), tuple(test), classes)


def pictures_in(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files with one of the `suffixes` in a folder, by name; of a file itself.

    Raises TaskDataError where there are none.
    """
    if path.is_file():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes) if path.is_dir() else []
    if not found:
        raise TaskDataError(
            f"it must be a picture, or a folder of pictures ({', '.join(suffixes)})",
            where="the data",
            cure="Check the path",
        )
    return found


def _files(part: Path, classes: tuple[str, ...], suffixes: tuple[str, ...]) -> list[tuple[Path, int]]:
    found = [
        (path, label)
        for label, name in enumerate(classes)
        if (part / name).is_dir()
        for path in sorted((part / name).iterdir())
        if path.suffix.lower() in suffixes and path.is_file() and not path.is_symlink()
    ]
    if len(found) > MOST_FILES:
        raise TaskDataError(
            f"at most {MOST_FILES} files are read, and it holds more", where="the data folder", cure="Use fewer files"
        )
    return found
