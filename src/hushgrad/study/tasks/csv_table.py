"""A table with a target column to classify: one CSV file, a folder with train.csv and test.csv, or the Adult folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks import adult
from hushgrad.study.tasks.encoders import TableEncoder
from hushgrad.study.tasks.encoding import number_of_features
from hushgrad.study.tasks.files import first_existing, require_existing
from hushgrad.study.tasks.table import Table, is_missing, read_table
from hushgrad.study.tasks.task import Recipe, Task, TaskOptions, choose_classes, fixed_split

RECIPE = Recipe(
    model="mlp", batch_size=1024, epochs=12, learning_rate=1.0, max_grad_norm=1.0, hidden_sizes=(), threads=1
)
# On Adult accuracy is the same within 0.3 points at every rate from 0.5 to 2 and every ε from 1 to 8.
RECIPES = {1.0: RECIPE, 3.0: RECIPE, 8.0: RECIPE}

MAX_CLASSES = 1000
MAX_SUBGROUPS = 50
CLASSES_WERE_READ = "the list of classes was read from the target column (name them with --classes to avoid this)"


@dataclass(frozen=True, slots=True)
class Source:
    """The tables and what is publicly known about them; `classes` is None where nobody declared them."""

    train: Table
    test: Table
    target: str
    categorical: frozenset[str]
    classes: tuple[str, ...] | None
    description: str


def load(options: TaskOptions) -> Task:
    """Return the task; takes `data`, `target`, `classes`, `categorical`, `bounds`, `drop` and
    `subgroup`, the column by which accuracy on test rows is reported.

    Features are made by a fixed rule (see `encoding`); nothing is fitted. Cells that spell a number count as numbers
    except in the columns named `categorical`. Raises TaskDataError for a column or class that is not there.
    """
    options.refuse("csv", "vocabulary")
    source = _source(options)
    features_of = tuple(name for name in source.train.columns if name != source.target and name not in options.drop)
    for name in (*options.categorical, *options.drop, *(name for name, _, _ in options.bounds)):
        source.train.position(name)
        if name == source.target:
            raise InvalidArgumentError(
                "it is the target, so it cannot be a feature as well",
                where=f"column {printable(name)!r}",
                cure="Name other columns in --categorical, --drop and --bounds",
            )
    if not features_of:
        raise TaskDataError("no column is left to learn from", where="--drop", cure="Drop fewer columns")
    known = source.classes or options.classes or _classes_in(source)
    outside = () if source.classes or options.classes else (CLASSES_WERE_READ,)
    width = number_of_features(len(features_of))

    declared = tuple(name for name in features_of if name in source.categorical or name in options.categorical)
    encoder = TableEncoder(features_of, declared, options.bounds, width)

    def examples(table: Table) -> TensorDataset:
        # Rows of classes that were not asked for are left out below, like the other digits of MNIST.
        position = {name: index for index, name in enumerate(known)}
        labels = [position.get(label, -1) for label in table.column(source.target)]
        inputs = encoder.of_table(table)
        target = torch.tensor(labels)
        if source.classes is not None and bool((target < 0).any()):
            raise TaskDataError(
                "it holds a label that the data set's description does not list",
                where=f"column {printable(source.target)!r}",
                cure="Fetch the files again, description included",
            )
        return TensorDataset(inputs[target >= 0], target[target >= 0])

    train, test, names = choose_classes(examples(source.train), examples(source.test), known, options.classes)
    shown = tuple(printable(name) for name in names)
    groups = _groups(source, options.subgroup, names) if options.subgroup is not None else None
    return Task("csv", source.description, train, test, shown, outside, test_groups=groups, encoder=encoder)


def _groups(source: Source, column: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the subgroup of each test row that is of one of the classes, in the rows' order."""
    labels, cells = source.test.column(source.target), source.test.column(column)
    groups = tuple(printable(cell) for label, cell in zip(labels, cells, strict=True) if label in classes)
    if len(set(groups)) > MAX_SUBGROUPS:
        raise TaskDataError(
            f"subgroups must have at most {MAX_SUBGROUPS} different values, got {len(set(groups))}",
            where=f"column {printable(column)!r}",
            cure="Choose a column with fewer values",
        )
    return groups


def _source(options: TaskOptions) -> Source:
    """Read the tables that `data` names and find the target column."""
    if options.data is None:
        raise InvalidArgumentError("it needs a file or a folder of data", where="task 'csv'", cure="Give --data")
    require_existing("csv", options.data, folder=False)
    if options.data.is_dir() and adult.is_adult(options.data):
        train, test, described = adult.read_adult(options.data)
        if options.target is not None and options.target not in described.target_names:
            raise TaskDataError(
                f"the target of the Adult folder is {adult.TARGET!r}", where="--target", cure="Leave --target out"
            )
        return Source(train, test, adult.TARGET, described.categorical, described.classes, "census records (Adult)")
    if options.target is None:
        raise InvalidArgumentError("it needs the column to predict", where="task 'csv'", cure="Give --target COLUMN")
    train, test = _from_folder(options.data) if options.data.is_dir() else _from_file(options.data)
    train.position(options.target)
    if train.columns != test.columns:
        raise TaskDataError(
            "the training table and the test table must have the same columns in the same order",
            where="--data",
            cure="Make the header lines of both files equal",
        )
    if any(is_missing(label) for table in (train, test) for label in table.column(options.target)):
        raise TaskDataError(
            "every row needs a label", where=f"column {printable(options.target)!r}", cure="Remove the rows without one"
        )
    return Source(train, test, options.target, frozenset(), None, f"table with {len(train.columns)} columns")


def _from_folder(folder: Path) -> tuple[Table, Table]:
    train = first_existing(folder, ("train.csv", "train.tsv"))
    test = first_existing(folder, ("test.csv", "test.tsv"))
    if train is None or test is None:
        raise TaskDataError(
            "the folder must hold train.csv and test.csv (.tsv and .gz are accepted), or Adult's files",
            where="--data",
            cure="Put both files there, or give one file",
        )
    return read_table(train), read_table(test)


def _from_file(path: Path) -> tuple[Table, Table]:
    """Return the two parts of one file, split 80 to 20, always in the same way."""
    table = read_table(path)
    kept, held_out = fixed_split(len(table.rows))
    if not len(held_out):
        raise TaskDataError(
            f"at least 3 rows are needed, so that some can be held out for testing, got {len(table.rows)}",
            where=printable(path.name),
            cure="Use a larger table",
        )
    train, test = ([table.rows[int(row)] for row in rows] for rows in (kept, held_out))
    return Table(table.columns, tuple(train)), Table(table.columns, tuple(test))


def _classes_in(source: Source) -> tuple[str, ...]:
    """Return the distinct labels, sorted. Raises TaskDataError if they look like measurements rather than classes."""
    labels = sorted({label for table in (source.train, source.test) for label in table.column(source.target)})
    if not 2 <= len(labels) <= MAX_CLASSES:
        raise TaskDataError(
            f"this task classifies: the target must have 2 to {MAX_CLASSES} different labels, got {len(labels)}",
            where=f"column {printable(source.target)!r}",
            cure="Choose another --target",
        )
    return tuple(labels)
