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

from hushgrad.arguments import positive_number
from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.printable import printable
from hushgrad.releases.query import Query
from hushgrad.releases.released import Released
from hushgrad.study.settings import check_settings, choice, names, number, path, setting, text, whole
from hushgrad.study.tasks.people import People
from hushgrad.study.tasks.tables.kinds import BOUNDS, DELIMITER, EDGES, ENCODING
from hushgrad.study.tasks.tables.spelling import MARKS

PUBLIC_SPLIT_SEED = 20240607
TEST_SHARE = 0.2
COUNTED = "counted"
OF_TABLES = (
    "target", "categorical", "bounds", "drop", "subgroup", "person", "delimiter", "encoding", "decimal",
    "target_edges", "schema",
)  # fmt: skip
"""Options that mean something for tables alone."""
OF_TEXT = ("vocabulary", "base")
"""Options that mean something for sentences alone; those that need one of them are refused without it."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings that suit a task, used where the user names none; found by runs (docs/training.md).

    Where they were not, `cited` names the papers after which they were chosen.

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
    cited: str | None = None


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What a user may say about the data; each field's help says what. A task refuses what means nothing to it."""

    data: Path | None = field(
        default=None,
        metadata=setting(path(), "Folder (mnist, csv, text, images) or file (csv, text) with the data.", key=None),
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
    base: Path | None = field(
        default=None,
        metadata=setting(
            path(),
            "text: a folder with a pretrained model of transformers and its tokenizer, to train on.",
            key=None,
        ),
    )
    tokens: int | None = field(
        default=None,
        metadata=setting(whole(1, "T"), "text, with --base: how many tokens of a sentence are read; 64.", key=None),
    )
    delimiter: str | None = field(
        default=None, metadata=setting(DELIMITER, "csv: what stands between cells; found by the first line.")
    )
    encoding: str | None = field(
        default=None, metadata=setting(ENCODING, "csv: how the file's characters are written; utf-8.")
    )
    decimal: str | None = field(
        default=None,
        metadata=setting(choice(MARKS), "csv: the decimal mark; a comma where cells end with ;, else a point."),
    )
    target_edges: tuple[float, ...] = field(
        default=(), metadata=setting(EDGES, "csv: a numeric target's public edges, which divide it into classes.")
    )
    schema: Path | None = field(
        default=None,
        metadata=setting(path(), "csv: a signed schema.json, as hushgrad data writes it to be edited.", key=None),
    )
    subgroup: str | None = field(
        default=None, metadata=setting(text("COLUMN"), "csv: report accuracy on test rows by this column.", key=None)
    )
    person: str | None = field(
        default=None,
        metadata=setting(
            text("COLUMN"), "csv: whose a row is; people are drawn and held out whole, and ε is for a person."
        ),
    )
    records_per_person: int | None = field(
        default=None,
        metadata=setting(
            whole(1, "K"), "csv, with --person: the most rows of one person, chosen without looking at the data."
        ),
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
        if self.target_edges and self.classes is not None:
            raise InvalidArgumentError(
                "classes and target_edges say two things of the target",
                where="target_edges",
                cure="Leave one of them out",
            )
        if (self.vocabulary == COUNTED) != (self.vocabulary_epsilon is not None):
            raise InvalidArgumentError(
                "'counted' and vocabulary_epsilon go together: words are counted with noise, and vocabulary_epsilon is "
                "the most that this alone may cost of the total epsilon",
                where="vocabulary",
                cure="Give both, or neither",
            )
        if self.base is not None and self.vocabulary is not None:
            raise InvalidArgumentError(
                "the words of a base model are those of its own tokenizer", where="vocabulary", cure="Leave it out"
            )
        if self.tokens is not None and self.base is None:
            raise InvalidArgumentError(
                "tokens are those of a base model's tokenizer, and no base is given",
                where="tokens",
                cure="Give --base too, or leave it out",
            )
        if (self.person is None) != (self.records_per_person is None):
            raise InvalidArgumentError(
                "person and records_per_person go together: more rows of a person than the declared number are left "
                "out, and the greatest number that is found in the data is no bound",
                where="person",
                cure="Give both, or neither: --person COLUMN --records-per-person K",
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
            "base": self.base is not None,
            "subgroup": self.subgroup is not None,
            "person": self.person is not None,
            "delimiter": self.delimiter is not None,
            "encoding": self.encoding is not None,
            "decimal": self.decimal is not None,
            "target_edges": bool(self.target_edges),
            "schema": self.schema is not None,
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
    the run's δ. `learned` makes of it what the task needs to know (`Task.vocabulary_buckets`, `Task.class_counts`), and
    `ready` of that the task; both cost nothing more. `study.preparation.prepare` does all of it.
    """

    epsilon: float
    query: Query
    records: Sequence[Any]
    learned: Callable[[Released], tuple[Any, ...]]
    ready: Callable[[tuple[Any, ...]], Task]


class Encoder(Protocol):
    """Reads new rows from a file and makes inputs of them."""

    def read(self, path: Path) -> Sequence[Any]:
        """Return the rows of a file. Raises TaskDataError, without a value of the file."""

    def encode(self, rows: Sequence[Any]) -> Tensor:
        """Return the inputs of rows, [N, *input_shape]. Raises TaskDataError, without a value of the rows."""

    @property
    def vocabulary_size(self) -> int | None:
        """How many numbers of words there are, that of padding included; None for inputs that are no words."""

    def as_json(self) -> dict[str, Any]:
        """Return what `encoder_file.encoding_from_json` makes the encoder of."""


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """Examples to train and to test on.

    `train` and `test` hold inputs `[N, *input_shape]` (float32, or int64 numbers of words below `vocabulary_size`) and
    labels [N] (int64, 0 … num_classes−1). `test_groups` names the subgroup of each test example where
    a column was named.
    `outside_the_guarantee` names each thing that was derived from the data without noise: ε does not cover it.

    `preparation` is None for a task that is ready; until then its training and test inputs are all padding.
    `vocabulary_buckets` are the hash buckets of a counted vocabulary, which its release has paid for. `encoder` makes
    inputs of new rows, as those of `train` and `test` were made. `class_weights` are what losses are multiplied by;
    `class_counts` the noised counts that they were computed from, if they were. `releases` is how many releases of the
    records the task rests on: the account of training must hold as many.

    `people` says whose each training example is, where ε is for a person; None where each example is a record of its
    own. `signed_by` is who declares what the task knows of its columns. `notices` are for whoever trains, and for
    nobody else: they were read off the data without noise.
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
    people: People | None = None
    signed_by: str | None = None
    notices: tuple[str, ...] = ()
    class_weights: tuple[float, ...] | None = None
    class_counts: tuple[float, ...] | None = None
    releases: int = 0

    @property
    def population(self) -> int:
        """How many units of privacy there are to train on: people where rows are theirs, else examples."""
        return len(self.train) if self.people is None else self.people.count

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
