"""schema.json: what somebody declares of a table, and signs: it is public, or was read off the data and is not covered.

`hushgrad data` writes one with the types that it found, each with the basis "data". Whoever knows that a type is public
(from a code book, say) writes "public" in its place. Ranges, categories and the other lists are never filled in by
hushgrad: what stands there was declared by whoever signed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushgrad.arguments import one_of
from hushgrad.errors import HushgradError, InvalidArgumentError, TaskDataError
from hushgrad.printable import printable
from hushgrad.study.settings import frozen
from hushgrad.study.tasks.tables.column import ANY, TYPES, Column
from hushgrad.study.tasks.tables.file_format import is_delimiter, is_encoding
from hushgrad.study.tasks.tables.spelling import MARKS, Spelling

FORMAT = 1
DROP = "drop"
DATA, PUBLIC = "data", "public"
MOST_BYTES = 1 << 24
STATEMENT = (
    "Whoever signs declares that all that stands here is public or was chosen without looking at the records, "
    'but for the types and dropped columns whose basis is "data": these were read off the records, and no epsilon '
    "covers them."
)


@dataclass(frozen=True, slots=True)
class Declared:
    """What is declared of one column; `column` None: it is dropped. `is_public`: its type, or that it is dropped."""

    column: Column | None
    is_public: bool = True


@dataclass(frozen=True, slots=True)
class Schema:
    """What is declared of a table.

    Attributes:
        columns: by name; a table may have others only where `is_whole` is False.
        delimiter, encoding, decimal: of the file, None where they are found by its first line.
        missing: marks of a missing value, beside the usual ones.
        signed_by: who declares it; None where it was declared by options.
        is_whole: whether the columns are all that the table has.
    """

    columns: Mapping[str, Declared]
    delimiter: str | None = None
    encoding: str | None = None
    decimal: str | None = None
    missing: tuple[str, ...] = ()
    signed_by: str | None = None
    is_whole: bool = False

    def __post_init__(self) -> None:
        for name, given, fits, example in (
            ("delimiter", self.delimiter, is_delimiter, "one character, such as ;"),
            ("encoding", self.encoding, is_encoding, "one that Python knows, such as latin-1"),
            ("decimal", self.decimal, MARKS.__contains__, "a point or a comma"),
        ):
            if given is not None and not fits(given):
                raise InvalidArgumentError(f"must be {example}", where=name, cure=f"Give {example}, or leave it out")
        if not isinstance(self.missing, tuple) or not all(isinstance(mark, str) for mark in self.missing):
            raise InvalidArgumentError("must be a list of texts", where="missing", cure='Write such as ["-9"]')

    def column(self, name: str) -> Column | None:
        """Return what is declared of a column; None where it is dropped."""
        return self.columns[name].column if name in self.columns else Column(name)

    def classes(self, target: str) -> tuple[str, ...] | None:
        """Return the public list of the target's texts; None where there is none."""
        declared = self.column(target)
        return None if declared is None else declared.categories

    def is_settled(self, name: str) -> bool:
        """Whether somebody has signed that the type of a column is public: there is nothing to tell them of it."""
        return self.signed_by is not None and self.columns[name].is_public and self.column(name) != Column(name)

    def spelling(self, delimiter: str) -> Spelling:
        """Return how the cells of a file with this delimiter are spelled: after semicolons, with decimal commas."""
        return Spelling(self.decimal or ("," if delimiter == ";" else "."), self.missing)

    def require_columns(self, names: Sequence[str]) -> None:
        """Raise TaskDataError unless the table has the columns that were declared."""
        absent = [name for name in self.columns if name not in names]
        undeclared = [name for name in names if name not in self.columns] if self.is_whole else []
        if self.is_whole and (absent or undeclared):
            said = [
                *(f"{printable(name)!r} is in the schema alone" for name in absent[:3]),
                *(f"{printable(name)!r} is in the table alone" for name in undeclared[:3]),
            ]
            raise TaskDataError(
                f"it must declare the columns of the table: {', '.join(said)}",
                where="the schema",
                cure="Add the column to the schema, or remove it there",
            )

    def outside_the_guarantee(self, features: Sequence[str]) -> tuple[str, ...]:
        """Return what it holds that was read off the records, for a model on these features."""
        read = [name for name, declared in self.columns.items() if not declared.is_public]
        types = [printable(name) for name in read if name in features]
        dropped = [printable(name) for name in read if self.columns[name].column is None]
        said = []
        if types:
            said.append(f"the types of columns that the schema says were read off the data: {', '.join(types)}")
        if dropped:
            said.append(f"that columns were dropped after a look at the data, as the schema says: {', '.join(dropped)}")
        return tuple(said)


def read_schema(path: Path) -> Schema:
    """Return the schema in a file. Raises InvalidArgumentError for one that is unreadable, or that nobody signed."""
    where = printable(path.name)
    try:
        content = path.read_bytes()[: MOST_BYTES + 1]
    except OSError as error:
        raise InvalidArgumentError(
            f"the schema cannot be read ({error.strerror})", where=where, cure="Check --schema"
        ) from error
    try:
        found = json.loads(content)
        if found["hushgrad_schema"] != FORMAT:
            raise ValueError("another version")
        signed_by, file = found["signed_by"], found["file"]
        declared = {name: _declared(name, value) for name, value in found["columns"].items()}
        made = Schema(
            declared, file.get("delimiter"), file.get("encoding"), file.get("decimal"), frozen(found["missing"]),
            signed_by, is_whole=True,
        )  # fmt: skip
    except HushgradError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidArgumentError(
            "it is no schema as hushgrad data writes it", where=where, cure="Write one anew by hushgrad data FILE"
        ) from None
    if not isinstance(signed_by, str) or not signed_by.strip() or not signed_by.isprintable():
        raise InvalidArgumentError(
            "nobody has signed the schema",
            where=where,
            cure='Read it, say of each column whether its type is public ("basis"), and write your name at "signed_by"',
        )
    return made


def schema_json(columns: Mapping[str, tuple[str, str]], delimiter: str, encoding: str | None, decimal: str) -> str:
    """Return a schema for somebody to edit and to sign, of (type or DROP, note) for each column.

    Every basis is "data", and no value of the table is in it.
    """
    value = {
        "hushgrad_schema": FORMAT,
        "signed_by": "",
        "statement": STATEMENT,
        "file": {"delimiter": delimiter, "encoding": encoding, "decimal": decimal},
        "missing": [],
        "columns": {
            name: {"type": type_, "basis": DATA, **({"note": note} if note else {})}
            for name, (type_, note) in columns.items()
        },
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


_KEYS = frozenset({"type", "basis", "range", "categories", "date_format", "note"})


def _declared(name: str, value: Mapping[str, Any]) -> Declared:
    where = f"column {printable(name)!r} of the schema"
    unknown = sorted(value.keys() - _KEYS)
    if unknown:
        raise InvalidArgumentError(
            f"it says what nobody asks for: {printable(unknown[0])}",
            where=where,
            cure=f"Choose from {', '.join(sorted(_KEYS))}",
        )
    one_of(f"{where}: type", value["type"], (*TYPES, DROP))
    one_of(f"{where}: basis", value["basis"], (DATA, PUBLIC))
    is_public = value["basis"] == PUBLIC or value["type"] == ANY
    if value["type"] == DROP:
        return Declared(None, is_public)
    bounds, categories = value.get("range"), value.get("categories")
    column = Column(
        name,
        value["type"],
        frozen(bounds),
        frozen(categories),
        value.get("date_format"),
    )
    return Declared(column, is_public)
