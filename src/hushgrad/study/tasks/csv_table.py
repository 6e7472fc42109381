"""A table with a target column to classify: a file, a folder with a training and a test table, or the Adult folder."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks.encoders import TableEncoder
from hushgrad.study.tasks.encoding import number_of_features
from hushgrad.study.tasks.people import People, bounded_rows
from hushgrad.study.tasks.table import Table
from hushgrad.study.tasks.tables.column import Column
from hushgrad.study.tasks.tables.labels import Labels
from hushgrad.study.tasks.tables.looking import look_at, notices
from hushgrad.study.tasks.tables.source import Source, read_source
from hushgrad.study.tasks.task import OF_TEXT, PUBLIC_SPLIT_SEED, Recipe, Task, TaskOptions, choose_classes

RECIPE = Recipe(
    model="mlp", batch_size=1024, epochs=12, learning_rate=1.0, max_grad_norm=1.0, hidden_sizes=(), threads=1
)
# On Adult accuracy is the same within 0.3 points at every rate from 0.5 to 2 and every ε from 1 to 8.
RECIPES = {1.0: RECIPE, 3.0: RECIPE, 8.0: RECIPE}

MAX_SUBGROUPS = 50
CLASSES_WERE_READ = "the list of classes was read from the target column (name them with --classes to avoid this)"


def load(options: TaskOptions) -> Task:
    """Return the task; takes all options but those of sentences.

    `subgroup` is the column by which accuracy on test rows is reported.

    Features are made by a fixed rule (see `encoding`); nothing is fitted. A cell counts as a number or a date where it
    spells one, but in columns of which something else was declared. With `person` all rows of a person are held out or
    none, and a person has at most `records_per_person` training rows.

    Raises TaskDataError for a column or class that is not there.
    """
    options.refuse("csv", *OF_TEXT)
    source = read_source(options)
    columns = _features(source, options)
    labels = Labels(source.target, options.target_edges, source.spelling)
    known, asked, outside = _classes(source, options, labels)
    # Rows of classes that were not asked for are left out, like the other digits of MNIST.
    wanted = set(asked or known)
    train, test = (_of_classes(table, labels, wanted) for table in (source.train, source.test))
    people = None
    if options.person is not None and options.records_per_person is not None:
        train, people = _people(source, train, options.person, options.records_per_person)
    names = tuple(column.name for column in columns)
    encoder = TableEncoder(
        columns, source.spelling, number_of_features(len(columns)), source.train.delimiter, source.schema.encoding
    )

    def examples(table: Table) -> TensorDataset:
        position = {name: index for index, name in enumerate(known)}
        return TensorDataset(
            encoder.of_table(table), torch.tensor([position[label] for label in labels.of(table)], dtype=torch.int64)
        )

    train_set, test_set, class_names = choose_classes(examples(train), examples(test), known, asked)
    seen = {name for name in names if not source.schema.is_settled(name)}
    return Task(
        "csv",
        source.description,
        train_set,
        test_set,
        tuple(printable(name) for name in class_names),
        (*outside, *source.schema.outside_the_guarantee(names)),
        test_groups=None if options.subgroup is None else _groups(test, options.subgroup),
        encoder=encoder,
        people=people,
        signed_by=source.schema.signed_by,
        notices=notices(look_at(source.train, source.spelling), seen, has_people=people is not None),
    )


def _classes(
    source: Source, options: TaskOptions, labels: Labels
) -> tuple[tuple[str, ...], tuple[str, ...] | None, tuple[str, ...]]:
    """Return the classes that there are, those that were asked for (None: all), and what was read off the data."""
    of_rows = labels.of(source.train), labels.of(source.test)
    if labels.intervals:
        return labels.intervals, None, ()
    asked = options.classes or source.schema.classes(source.target)
    if source.classes is not None and not set().union(*of_rows) <= set(source.classes):
        raise TaskDataError(
            "it holds a label that the data set's description does not list",
            where=f"column {printable(source.target)!r}",
            cure="Fetch the files again, description included",
        )
    declared = source.classes or asked
    return (declared, asked, ()) if declared else (labels.found_in(*of_rows), None, (CLASSES_WERE_READ,))


def _of_classes(table: Table, labels: Labels, wanted: set[str]) -> Table:
    """Return the rows of the classes that are wanted."""
    return table.at(row for row, label in enumerate(labels.of(table)) if label in wanted)


def _features(source: Source, options: TaskOptions) -> tuple[Column, ...]:
    """Return the columns that become features: not the target, not the person, and none that was dropped."""
    for name in (*options.categorical, *options.drop, *(name for name, _, _ in options.bounds)):
        source.train.position(name)
        if name == source.target:
            raise InvalidArgumentError(
                "it is the target, so it cannot be a feature as well",
                where=f"column {printable(name)!r}",
                cure="Name other columns in --categorical, --drop and --bounds",
            )
    if options.person is not None:
        source.train.position(options.person)
        if options.person == source.target:
            raise InvalidArgumentError(
                "it is the target, so it cannot say whose a row is",
                where=f"column {printable(options.person)!r}",
                cure="Name another column in --person",
            )
    kept = [name for name in source.train.columns if name not in (source.target, options.person)]
    columns = tuple(column for name in kept if (column := source.schema.column(name)) is not None)
    if not columns:
        raise TaskDataError("no column is left to learn from", where="--drop", cure="Drop fewer columns")
    return columns


def _people(source: Source, train: Table, person: str, at_most: int) -> tuple[Table, People]:
    """Return the training table with at most so many rows of each person, and whose they are."""
    ids, where = train.column(person), f"column {printable(person)!r}"
    held_out = set(source.test.column(person))
    if any(source.spelling.is_missing(cell) for cell in (*source.train.column(person), *held_out)):
        raise TaskDataError(
            "some rows do not say whose they are",
            where=where,
            cure="Leave these rows out, or give each of them an id of its own",
        )
    if held_out & set(ids):
        raise TaskDataError(
            "some people have rows in the training table and in the test table",
            where=where,
            cure="Divide by person; a single file is divided so",
        )
    if not ids:
        raise TaskDataError("no training row is of the chosen classes", where="classes", cure="Choose other classes")
    kept = bounded_rows(ids, at_most, PUBLIC_SPLIT_SEED)
    return train.at(kept), People.of([ids[row] for row in kept], at_most, printable(person))


def _groups(test: Table, column: str) -> tuple[str, ...]:
    """Return the subgroup of each test row."""
    groups = tuple(printable(cell) for cell in test.column(column))
    if len(set(groups)) > MAX_SUBGROUPS:
        raise TaskDataError(
            f"subgroups must have at most {MAX_SUBGROUPS} different values, got {len(set(groups))}",
            where=f"column {printable(column)!r}",
            cure="Choose a column with fewer values",
        )
    return groups
