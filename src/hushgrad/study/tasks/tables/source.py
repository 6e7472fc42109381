"""The training table and the test table that `--data` names, and what is declared of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks import adult
from hushgrad.study.tasks.files import first_existing, require_existing
from hushgrad.study.tasks.people import split_people
from hushgrad.study.tasks.table import Table, read_table
from hushgrad.study.tasks.tables.column import TEXT, Column
from hushgrad.study.tasks.tables.schema import Declared, Schema, read_schema
from hushgrad.study.tasks.tables.spelling import Spelling
from hushgrad.study.tasks.tables.typed import is_typed
from hushgrad.study.tasks.task import PUBLIC_SPLIT_SEED, TEST_SHARE, TaskOptions, fixed_split

PARTS = (".csv", ".tsv", ".parquet", ".arrow", ".feather")
OF_THE_FILE = ("delimiter", "encoding", "decimal")


@dataclass(frozen=True, slots=True)
class Source:
    """The tables and what is publicly known about them; `classes` is None where nobody declared them."""

    train: Table
    test: Table
    target: str
    schema: Schema
    spelling: Spelling
    classes: tuple[str, ...] | None
    description: str


def read_source(options: TaskOptions) -> Source:
    """Read the tables that `data` names and find the target column. Raises TaskDataError for what is not there."""
    if options.data is None:
        raise InvalidArgumentError("it needs a file or a folder of data", where="task 'csv'", cure="Give --data")
    require_existing("csv", options.data, folder=False)
    if options.data.is_dir() and adult.is_adult(options.data):
        return _adult(options, options.data)
    if options.target is None:
        raise InvalidArgumentError("it needs the column to predict", where="task 'csv'", cure="Give --target COLUMN")
    schema = schema_of(options)

    def read(path: Path) -> Table:
        return read_table(path, delimiter=schema.delimiter, encoding=schema.encoding)

    is_one = not options.data.is_dir() or is_typed(options.data)
    train, test = _from_file(options.data, options.person, read) if is_one else _from_folder(options.data, read)
    train.position(options.target)
    if train.columns != test.columns:
        raise TaskDataError(
            "the training table and the test table must have the same columns in the same order",
            where="--data",
            cure="Make the header lines of both files equal",
        )
    schema.require_columns(train.columns)
    said = f"table with {len(train.columns)} columns"
    return Source(train, test, options.target, schema, schema.spelling(train.delimiter), None, said)


def schema_of(options: TaskOptions) -> Schema:
    """Return what is declared of a table, in a signed file or by options. Raises InvalidArgumentError for both."""
    if options.schema is not None:
        given = [name for name in (*OF_THE_FILE, "categorical", "bounds", "drop") if getattr(options, name)]
        if given:
            raise InvalidArgumentError(
                f"the schema says what {', '.join(given)} would",
                where="--schema",
                cure="Leave these options out, and write it into the schema",
            )
        return read_schema(options.schema)
    columns = {name: Declared(Column(name, TEXT)) for name in options.categorical}
    for name, low, high in options.bounds:
        if name in columns:
            raise InvalidArgumentError(
                "its cells are names, and have no bounds",
                where=f"column {printable(name)!r}",
                cure="Name it in --categorical or in --bounds",
            )
        columns[name] = Declared(Column(name, bounds=(low, high)))
    columns |= {name: Declared(None) for name in options.drop}
    return Schema(columns, options.delimiter, options.encoding, options.decimal)


def _adult(options: TaskOptions, folder: Path) -> Source:
    given = [name for name in (*OF_THE_FILE, "schema") if getattr(options, name) is not None]
    if given:
        raise InvalidArgumentError(
            f"its files are known, and take no {', '.join(given)}",
            where="the Adult folder",
            cure="Leave these options out",
        )
    train, test, described = adult.read_adult(folder)
    if options.target is not None and options.target not in described.target_names:
        raise TaskDataError(
            f"the target of the Adult folder is {adult.TARGET!r}", where="--target", cure="Leave --target out"
        )
    schema = schema_of(options)
    columns = {name: Declared(Column(name, TEXT)) for name in described.categorical if name not in schema.columns}
    declared = Schema({**columns, **schema.columns})
    return Source(train, test, adult.TARGET, declared, Spelling(), described.classes, "census records (Adult)")


def _from_folder(folder: Path, read: Callable[[Path], Table]) -> tuple[Table, Table]:
    train = first_existing(folder, tuple(f"train{suffix}" for suffix in PARTS)) or _saved(folder / "train")
    test = first_existing(folder, tuple(f"test{suffix}" for suffix in PARTS)) or _saved(folder / "test")
    if train is None or test is None:
        raise TaskDataError(
            "the folder must hold train.csv and test.csv (.tsv, .parquet, .arrow and .gz are accepted), or Adult's "
            "files",
            where="--data",
            cure="Put both files there, or give one file",
        )
    return read(train), read(test)


def _saved(folder: Path) -> Path | None:
    """Return the folder if Hugging Face's `datasets` has saved a part there."""
    return folder if is_typed(folder) else None


def _from_file(path: Path, person: str | None, read: Callable[[Path], Table]) -> tuple[Table, Table]:
    """Return the two parts of one file, 80 to 20, always in the same way: by rows, or by people."""
    table = read(path)
    if person is None:
        kept, held_out = (part.tolist() for part in fixed_split(len(table.rows)))
    else:
        kept, held_out = split_people(table.column(person), TEST_SHARE, PUBLIC_SPLIT_SEED)
    if not kept or not held_out:
        wanted = "3 rows are" if person is None else "some people are"
        raise TaskDataError(
            f"at least {wanted} needed, so that some can be held out for testing, got {len(table.rows)} rows",
            where=printable(path.name),
            cure="Use a larger table",
        )
    return table.at(kept), table.at(held_out)
