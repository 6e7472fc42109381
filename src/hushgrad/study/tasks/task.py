"""A task: training and test examples as tensors, and the settings that suit them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from hushgrad.arguments import positive_number, real_number
from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.printable import printable
from hushgrad.releases.query import Query
from hushgrad.releases.released import Released
from hushgrad.study.settings import Kind, check_settings, names, number, path, setting, text

PUBLIC_SPLIT_SEED = 20240607
TEST_SHARE = 0.2
COUNTED = "counted"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings that suit a task, used where the user names none; found by runs (docs/training.md).

    `threads` None leaves the number to torch; 1 suits models so small that sharing the work costs more than it saves.
    """

    model: str
    batch_size: int
    epochs: int
    learning_rate: float
    max_grad_norm: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    hidden_sizes: tuple[int, ...] = (64,)
    activation: str = "tanh"
    augmentations: int = 0
    average_decay: float = 0.0
    max_physical_batch_size: int | None = None
    threads: int | None = None


def _bounds_from(given: str) -> tuple[str, float, float]:
    """Return column, lower and upper bound; the column's own name may contain colons."""
    column, low, high = given.rsplit(":", 2)
    return column, float(low), float(high)


def _check_bounds(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(item, tuple) and len(item) == 3 for item in value):
        raise InvalidArgumentError(
            f"must be triples of a column, its lower and its upper bound, got {type(value).__name__}",
            where=name,
            cure="Pass such as (('age', 0, 120),)",
        )
    for column, low, high in value:
        if not isinstance(column, str):
            raise InvalidArgumentError(
                f"must begin with a column's name, got {type(column).__name__}",
                where=name,
                cure="Pass the name as text",
            )
        if not real_number("the lower bound", low) < real_number("the upper bound", high):
            raise InvalidArgumentError(
                f"bounds must be LOW < HIGH, got {low} and {high}",
                where=f"column {printable(column)!r}",
                cure="Give the smaller bound first",
            )


BOUNDS = Kind(
    _bounds_from, _check_bounds, "COLUMN:LOW:HIGH", "two numbers after a column, such as age:0:120", repeats=True
)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What a user may say about the data; each field's help says what. A task refuses what means nothing to it."""

    data: Path | None = field(
        default=None,
        metadata=setting(path(), "Folder (mnist, csv, text, images) or file (csv) with the data.", key=None),
    )
    classes: tuple[str, ...] | None = field(
        default=None, metadata=setting(names("A,B,…"), "Only these classes, in this order.", key=None)
    )
    target: str | None = field(default=None, metadata=setting(text("COLUMN"), "csv: the column to predict."))
    categorical: tuple[str, ...] = field(
        default=(), metadata=setting(names("COLUMN,…"), "csv: columns whose numbers are names, such as postcodes.")
    )
    bounds: tuple[tuple[str, float, float], ...] = field(
        default=(), metadata=setting(BOUNDS, "csv: public bounds of a numeric column; may be given several times.")
    )
    drop: tuple[str, ...] = field(
        default=(), metadata=setting(names("COLUMN,…"), "csv: columns to leave out.", key="dropped")
    )
    vocabulary: str | None = field(
        default=None,
        metadata=setting(
            text("KIND"), "text: 'hashed' (the default), a public file of words, 'counted' or 'train'.", key=None
        ),
    )
    vocabulary_epsilon: float | None = field(
        default=None,
        metadata=setting(number(positive_number), "text: what a 'counted' vocabulary may cost of the total ε."),
    )
    subgroup: str | None = field(
        default=None, metadata=setting(text("COLUMN"), "csv: report accuracy on test rows by this column.", key=None)
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.classes is not None:
            if len(set(self.classes)) != len(self.classes):
                raise InvalidArgumentError(
                    "must name each class once", where="classes", cure="Remove the repeated names"
                )
            if len(self.classes) < 2:
                raise InvalidArgumentError(
                    f"must name at least 2 classes, got {len(self.classes)}", where="classes", cure="Name more classes"
                )
        if (self.vocabulary == COUNTED) != (self.vocabulary_epsilon is not None):
            raise InvalidArgumentError(
                "'counted' and vocabulary_epsilon go together: words are counted with noise, and vocabulary_epsilon is "
                "the most that this alone may cost of the total epsilon",
                where="vocabulary",
                cure="Give both, or neither",
            )

    def refuse(self, task: str, *names: str) -> None:
        """Raise InvalidArgumentError if one of the options `names` is set, which `task` does not take."""
        given = {
            "data": self.data is not None,
            "target": self.target is not None,
            "categorical": bool(self.categorical),
            "bounds": bool(self.bounds),
            "drop": bool(self.drop),
            "vocabulary": self.vocabulary is not None,
            "subgroup": self.subgroup is not None,
        }
        unwanted = [name for name in names if given[name]]
        if unwanted:
            raise InvalidArgumentError(
                f"it takes no {', '.join(unwanted)}", where=f"task {task!r}", cure="Leave these options out"
            )


@dataclass(frozen=True, eq=False, slots=True)
class Preparation:
    """What a task still has to learn from its training records, with noise, before a model can be trained on it.

    `query`, asked of all of `records`, is the one release that it takes; `epsilon` is what this may cost by itself at
    the run's δ. `learned` makes of it what the task needs to know (`Task.vocabulary_buckets`), and `ready` of that the
    task; both cost nothing more. `study.preparation.prepare` does all of it.
    """

    epsilon: float
    query: Query
    records: Sequence[Any]
    learned: Callable[[Released], tuple[int, ...]]
    ready: Callable[[tuple[int, ...]], Task]


class Encoder(Protocol):
    """Reads new rows from a file and makes inputs of them."""

    def read(self, path: Path) -> Sequence[Any]:
        """Return the rows of a file. Raises TaskDataError, without a value of the file."""

    def encode(self, rows: Sequence[Any]) -> Tensor:
        """Return the inputs of rows, [N, *input_shape]. Raises TaskDataError, without a value of the rows."""

    def as_json(self) -> dict[str, Any]:
        """Return what `encoder_file.encoding_from_json` makes the encoder of."""


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """Examples to train and to test on.

    `train` and `test` hold inputs [N, *input_shape] (float32, or int64 word numbers below `vocabulary_size`) and labels
    [N] (int64, 0 … num_classes−1). `test_groups` names the subgroup of each test example, where a column was named.
    `outside_the_guarantee` names each thing that was derived from the data without noise: ε does not cover it.

    `preparation` is None for a task that is ready; until then its training and test inputs are all padding.
    `vocabulary_buckets` are the hash buckets of a counted vocabulary, which its release has paid for. `encoder` makes
    inputs of new rows, as those of `train` and `test` were made.
    """

    name: str
    description: str
    train: TensorDataset
    test: TensorDataset
    class_names: tuple[str, ...]
    outside_the_guarantee: tuple[str, ...] = ()
    vocabulary_size: int | None = None
    test_groups: tuple[str, ...] | None = None
    preparation: Preparation | None = None
    vocabulary_buckets: tuple[int, ...] | None = None
    encoder: Encoder | None = None

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.tensors[0].shape[1:])


def fixed_split(count: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the training and of the test examples, 80 to 20, as two int64 tensors.

    The order comes from a public constant and from `count` alone: every run, and everybody, gets the same split.
    """
    order = torch.from_numpy(np.random.Generator(np.random.PCG64(PUBLIC_SPLIT_SEED)).permutation(count))
    held_out = round(count * TEST_SHARE)
    return order[held_out:], order[:held_out]


def keep_classes(examples: TensorDataset, kept: tuple[int, ...]) -> TensorDataset:
    """Return the examples whose label is in `kept`, relabelled to their positions in it."""
    inputs, labels = examples.tensors
    position = torch.full((int(labels.max()) + 1 if len(labels) else 1,), -1)
    for new, old in enumerate(kept):
        if old < len(position):
            position[old] = new
    relabelled = position[labels]
    chosen = relabelled >= 0
    return TensorDataset(inputs[chosen], relabelled[chosen])


def require_known_classes(wanted: tuple[str, ...] | None, known: tuple[str, ...]) -> None:
    """Raise TaskDataError if `wanted` names a class that is not in `known`; needs no data."""
    unknown = [name for name in wanted or () if name not in known]
    if unknown:
        raise TaskDataError(
            f"must be among {', '.join(map(printable, known))}, got {', '.join(map(printable, unknown))}",
            where="classes",
            cure="Choose from these",
        )


def choose_classes(
    train: TensorDataset, test: TensorDataset, all_names: tuple[str, ...], wanted: tuple[str, ...] | None
) -> tuple[TensorDataset, TensorDataset, tuple[str, ...]]:
    """Return both sets cut to the classes `wanted` (all, if None) and the names of the classes left.

    Raises TaskDataError for a class that the task does not have, or that has no training example.
    """
    if wanted is None:
        return train, test, all_names
    require_known_classes(wanted, all_names)
    kept = tuple(all_names.index(name) for name in wanted)
    train, test = keep_classes(train, kept), keep_classes(test, kept)
    absent = [name for label, name in enumerate(wanted) if not bool((train.tensors[1] == label).any())]
    if absent:
        raise TaskDataError(
            f"no training example is of class {', '.join(map(printable, absent))}",
            where="classes",
            cure="Choose other classes",
        )
    if not len(test):
        raise TaskDataError("no test example is of the chosen classes", where="classes", cure="Choose other classes")
    return train, test, wanted
