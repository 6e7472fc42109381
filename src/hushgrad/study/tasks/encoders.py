"""How new rows become inputs of a trained model: as its training records did, by a rule that the run's folder keeps.

An encoder holds what was declared or is public, and a counted vocabulary, which ε covers. None was fitted on records.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks.arrays import array_of, read_arrays
from hushgrad.study.tasks.encoding import encode
from hushgrad.study.tasks.folders import pictures_in
from hushgrad.study.tasks.pictures import SIDE, SUFFIXES, picture
from hushgrad.study.tasks.table import DELIMITERS, Table, read_table
from hushgrad.study.tasks.tables.column import Column
from hushgrad.study.tasks.tables.spelling import Spelling
from hushgrad.study.tasks.tables.typed import cell_text
from hushgrad.study.tasks.task import COUNTED
from hushgrad.study.tasks.words import (
    FROM_TRAINING,
    HASHED,
    Vocabulary,
    counted_vocabulary,
    listed_vocabulary,
    make_vocabulary,
    read_sentences,
    require_sentences,
)


@dataclass(frozen=True, slots=True)
class TableEncoder:
    """Rows are mappings of columns to cells; columns that were not trained on are ignored.

    A text that no training record had is hashed like any other, but where a public list of categories was declared.
    `delimiter` stood in the training file, `encoding` was declared of it.
    """

    columns: tuple[Column, ...]
    spelling: Spelling
    features: int
    delimiter: str | None = None
    encoding: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that become features."""
        return tuple(column.name for column in self.columns)

    def table(self, path: Path) -> Table:
        """Return a file as a table, as the training file was read; one in UTF-8 is read as that, too.

        Raises TaskDataError also for decimal commas where the model has learned from points: they would be texts.
        """
        delimiter = None if self.delimiter in (None, *DELIMITERS) else self.delimiter
        declared = self.encoding
        if declared is None or declared.lower().startswith("utf"):
            table = read_table(path, delimiter=delimiter, encoding=declared)
        else:  # what is UTF-8 all through is hardly ever text in another encoding
            try:
                table = read_table(path, delimiter=delimiter)
            except TaskDataError:
                table = read_table(path, delimiter=delimiter, encoding=declared)
        if table.delimiter == ";" != self.delimiter and self.spelling.decimal == ".":
            raise TaskDataError(
                "its cells end with semicolons, where numbers have decimal commas, and the model was trained on points",
                where=repr(printable(path.name)),
                cure="Write it with commas between cells and decimal points, as the training file is",
            )
        return table

    def read(self, path: Path) -> Sequence[Any]:
        """Return the rows of a file of a table whose first line names the columns, in any order."""
        table = self.table(path)
        return [dict(zip(table.columns, row, strict=True)) for row in table.rows]

    def encode(self, rows: Sequence[Any]) -> Tensor:
        """Return [N, features]; a cell is text, an int, a float, a date or None, which is a missing one.

        A whole float is the int that it equals.
        """
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping):
                raise TaskDataError(
                    f"must be a mapping of columns to cells, got {type(row).__name__}",
                    where=f"row {number}",
                    cure="Pass such as {'age': 39, 'education': 'Bachelors'}",
                )
            missing = [name for name in self.names if name not in row]
            if missing:
                raise TaskDataError(
                    f"it lacks the column {printable(missing[0])!r}, one of {len(missing)} that the model was trained "
                    f"on and that are not there",
                    where=f"row {number}",
                    cure="Name every column (in a file: in its first line); an empty cell is a missing value",
                )
        cells = tuple(
            tuple(cell_text(row[name], name, f"row {number}, ") for name in self.names)
            for number, row in enumerate(rows, start=1)
        )
        return self.of_table(Table(self.names, cells))

    def of_table(self, table: Table) -> Tensor:
        """Return [N, features] for the rows of a table that has these columns, among others."""
        return encode(table, self.columns, spelling=self.spelling, features=self.features)

    @property
    def vocabulary_size(self) -> None:
        """None: the inputs are no words."""

    def as_json(self) -> dict[str, Any]:
        """Return the columns and what was declared of them and of the file."""
        return {
            "kind": "columns",
            "columns": [column.as_json() for column in self.columns],
            "spelling": asdict(self.spelling),
            "features": self.features,
            "delimiter": self.delimiter,
            "encoding": self.encoding,
        }


@dataclass(frozen=True, slots=True)
class SentenceEncoder:
    """Rows are sentences. A word that is not in the vocabulary has the number of unknown words, or that of its hash.

    `vocabulary` is "hashed", "counted" (with `buckets`), "listed" (with the `words` of a public file) or "train", of
    which nothing is kept.
    """

    vocabulary: str
    size: int
    words: tuple[str, ...] = ()
    buckets: tuple[int, ...] = ()

    def read(self, path: Path) -> Sequence[Any]:
        """Return the sentences of a TSV file under a header line: its last column."""
        return read_sentences(path)

    def encode(self, rows: Sequence[Any]) -> Tensor:
        """Return [N, LENGTH] word numbers."""
        require_sentences(rows)
        return self._made().encode(rows)

    @property
    def vocabulary_size(self) -> int:
        """How many numbers of words there are."""
        return self.size

    def as_json(self) -> dict[str, Any]:
        """Return the kind of vocabulary, and its words where they are public or paid for."""
        kept = {"vocabulary": self.vocabulary, "size": self.size}
        return {"kind": "sentences", **kept, "words": self.words, "buckets": self.buckets}

    def _made(self) -> Vocabulary:
        if self.vocabulary == FROM_TRAINING:
            raise InvalidArgumentError(
                "its words were taken from the training records without noise, and no epsilon covers them: so the run "
                "keeps none of them, and cannot encode new sentences",
                where="the vocabulary",
                cure="Train with --vocabulary hashed, counted or a public file",
            )
        if self.vocabulary == HASHED:
            return make_vocabulary(HASHED, ())
        return counted_vocabulary(self.buckets) if self.vocabulary == COUNTED else listed_vocabulary(self.words)


@dataclass(frozen=True, slots=True)
class ArrayEncoder:
    """Rows are images of one channel as arrays of `rows` × `columns` pixels from 0 to `largest`."""

    rows: int
    columns: int
    largest: float

    def read(self, path: Path) -> Sequence[Any]:
        """Return the images of an IDX file, or of a .npy or .npz file with one array."""
        return read_arrays(path)

    def encode(self, rows: Sequence[Any]) -> Tensor:
        """Return [N, 1, rows, columns] in 0 … 1."""
        return array_of(rows, self.rows, self.columns, self.largest)

    @property
    def vocabulary_size(self) -> None:
        """None: the inputs are no words."""

    def as_json(self) -> dict[str, Any]:
        """Return the size and the public maximum."""
        return {"kind": "arrays", "rows": self.rows, "columns": self.columns, "largest": self.largest}


@dataclass(frozen=True, slots=True)
class PictureEncoder:
    """Rows are paths of picture files."""

    def read(self, path: Path) -> Sequence[Any]:
        """Return the pictures in a folder, by name, or the one picture."""
        return pictures_in(path, SUFFIXES)

    def encode(self, rows: Sequence[Any]) -> Tensor:
        """Return [N, 3, SIDE, SIDE] in 0 … 1."""
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, str | os.PathLike):
                raise TaskDataError(
                    f"must be the path of a picture, got {type(row).__name__}",
                    where=f"row {number}",
                    cure="Pass paths of files",
                )
        pictures = [picture(Path(row)) for row in rows]
        return torch.stack(pictures) if pictures else torch.zeros(0, 3, SIDE, SIDE)

    @property
    def vocabulary_size(self) -> None:
        """None: the inputs are no words."""

    def as_json(self) -> dict[str, Any]:
        """Return that these are pictures: all else is fixed."""
        return {"kind": "pictures"}
