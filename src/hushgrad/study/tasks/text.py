"""Sentences to classify: train.tsv and dev.tsv as in SST-2, or text files in folders named after their classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from hushgrad.errors import InvalidArgumentError, TaskDataError
from hushgrad.printable import printable
from hushgrad.study.pretrained.folder import tokenizer_in
from hushgrad.study.pretrained.tuning import BITFIT, FULL, HEAD, LORA
from hushgrad.study.tasks.counted import counts_of, frequent
from hushgrad.study.tasks.encoders import SentenceEncoder
from hushgrad.study.tasks.files import first_existing, read_bytes, require_existing
from hushgrad.study.tasks.folders import read_folders
from hushgrad.study.tasks.task import (
    COUNTED,
    OF_TABLES,
    Preparation,
    Recipe,
    Task,
    TaskOptions,
    choose_classes,
    fixed_split,
)
from hushgrad.study.tasks.tokens import FROM_BASE, TOKENS, TokenEncoder
from hushgrad.study.tasks.words import (
    FROM_TRAINING,
    HASHED,
    LENGTH,
    LISTED,
    PADDING,
    Vocabulary,
    counted_vocabulary,
    make_vocabulary,
    public_words,
    words_of,
)

RECIPE = Recipe(
    model="transformer",
    batch_size=2048,
    epochs=5,
    learning_rate=0.005,
    max_grad_norm=1.0,
    optimizer="adam",
    threads=1,
    average_decay=0.95,
)
_SLOWER = replace(RECIPE, learning_rate=0.002)
RECIPES = {1.0: _SLOWER, 3.0: RECIPE, 8.0: _SLOWER}

_TUNED = replace(
    RECIPE,
    batch_size=1024,
    max_grad_norm=0.1,
    average_decay=0.0,
    threads=None,
    max_physical_batch_size=64,
    cited="Li et al. 2022, Yu et al. 2022 and Bu et al. 2024",
)
RATES = {LORA: 5e-4, BITFIT: 5e-3, HEAD: 5e-3, FULL: 5e-4}
TUNED_RECIPES = {name: {3.0: replace(_TUNED, model=name, learning_rate=rate)} for name, rate in RATES.items()}

MAX_CLASSES = 1000
MAX_SENTENCE_BYTES = 1 << 20
CLASSES_WERE_READ = "the list of classes was read from the labels or folders (name them with --classes to avoid this)"


@dataclass(frozen=True, slots=True)
class Labelled:
    """Sentences and their labels."""

    sentences: list[str]
    labels: list[str]

    def at(self, rows: Sequence[int]) -> Labelled:
        """Return those of these rows."""
        return Labelled([self.sentences[row] for row in rows], [self.labels[row] for row in rows])

    def only(self, known: tuple[str, ...]) -> Labelled:
        """Return those whose label is in `known`."""
        return self.at([row for row, label in enumerate(self.labels) if label in known])


def load(options: TaskOptions) -> Task:
    """Return the task from the folder `data`; takes `classes` and a `vocabulary`, or a `base`, whose tokenizer takes
    the place of one. See `words` for what a vocabulary costs.

    The folder holds train.tsv and dev.tsv or test.tsv (.gz accepted) with a header line, the label in the first column
    and the sentence in the second; or folders of .txt files named after their classes. One such file in its place is
    split 80 to 20, always in the same way.
    """
    options.refuse("text", *OF_TABLES)
    if options.data is None:
        raise InvalidArgumentError(
            "it needs a folder with train.tsv and dev.tsv, one such file, or a folder of text files for each class",
            where="task 'text'",
            cure="Give --data",
        )
    require_existing("text", options.data, folder=False)
    train, test = _read(options.data)
    known = options.classes or tuple(sorted(set(train.labels) | set(test.labels)))
    if not 2 <= len(known) <= MAX_CLASSES:
        raise TaskDataError(
            f"the sentences must have 2 to {MAX_CLASSES} different labels, got {len(known)}",
            where="task 'text'",
            cure="Choose some of them with --classes",
        )
    train, test = train.only(known), test.only(known)
    outside = () if options.classes else (CLASSES_WERE_READ,)
    if options.base is not None:
        return _tokenised(train, test, known, options.base, options.tokens or TOKENS, outside)
    if options.vocabulary_epsilon is None:  # TaskOptions sees to it that vocabulary is then not "counted"
        vocabulary = make_vocabulary(options.vocabulary, train.sentences)
        return _encoded(train, test, known, vocabulary, outside, _encoder(options.vocabulary, vocabulary.size))

    def ready(buckets: tuple[int, ...]) -> Task:
        vocabulary = counted_vocabulary(buckets)
        encoder = SentenceEncoder(COUNTED, vocabulary.size, buckets=buckets)
        task = _encoded(train, test, known, vocabulary, outside, encoder)
        described = f"{task.description}, of which {len(buckets)} kinds have a number of their own"
        return replace(task, description=described, vocabulary_buckets=buckets, releases=1)

    unread = Vocabulary(lambda word: PADDING, 1)
    return replace(
        _encoded(train, test, known, unread, outside, None),
        preparation=Preparation(
            options.vocabulary_epsilon,
            counts_of(lambda sentence: words_of(sentence)[:LENGTH], LENGTH),
            train.sentences,
            frequent,
            ready,
        ),
    )


def _encoded(
    train: Labelled,
    test: Labelled,
    known: tuple[str, ...],
    vocabulary: Vocabulary,
    outside: tuple[str, ...],
    encoder: SentenceEncoder | None,
) -> Task:
    kept, held_out, names = _examples(train, test, known, vocabulary.encode)
    outside = (*vocabulary.outside_the_guarantee, *outside)
    described, size = f"sentences, the first {LENGTH} words", vocabulary.size
    return Task("text", described, kept, held_out, names, outside, vocabulary_size=size, encoder=encoder)


def _tokenised(
    train: Labelled, test: Labelled, known: tuple[str, ...], base: Path, length: int, outside: tuple[str, ...]
) -> Task:
    encoder = TokenEncoder(tokenizer_in(base), length)
    kept, held_out, names = _examples(train, test, known, encoder.encode)
    described = f"sentences, the first {length} tokens of base model {printable(base.resolve().name)!r}"
    outside, size = (FROM_BASE, *outside), encoder.vocabulary_size
    return Task("text", described, kept, held_out, names, outside, vocabulary_size=size, encoder=encoder)


def _examples(
    train: Labelled, test: Labelled, known: tuple[str, ...], encode: Callable[[Sequence[str]], Tensor]
) -> tuple[TensorDataset, TensorDataset, tuple[str, ...]]:
    """Return both sets with numbers for words and for labels, and the names of the classes."""
    place = {name: number for number, name in enumerate(known)}

    def examples(part: Labelled) -> TensorDataset:
        labels = torch.tensor([place[label] for label in part.labels], dtype=torch.int64)
        return TensorDataset(encode(part.sentences), labels)

    return choose_classes(examples(train), examples(test), known, known)


def _encoder(kind: str | None, size: int) -> SentenceEncoder:
    """Return the encoder of a vocabulary that needs no preparation."""
    if kind is None or kind in (HASHED, FROM_TRAINING):
        return SentenceEncoder(kind or HASHED, size)
    return SentenceEncoder(LISTED, size, words=tuple(public_words(kind)))


def _read(folder: Path) -> tuple[Labelled, Labelled]:
    if folder.is_file():
        table = _read_table(folder)
        kept, held_out = fixed_split(len(table.labels))
        return table.at(kept.tolist()), table.at(held_out.tolist())
    train, test = first_existing(folder, ("train.tsv",)), first_existing(folder, ("test.tsv", "dev.tsv"))
    if train is not None and test is not None:
        return _read_table(train), _read_table(test)
    filed = read_folders(folder, (".txt",))
    parts = [
        Labelled(
            [read_bytes(path, limit=MAX_SENTENCE_BYTES).decode("utf-8", errors="replace") for path, _ in files],
            [filed.classes[label] for _, label in files],
        )
        for files in (filed.train, filed.test)
    ]
    return parts[0], parts[1]


def _read_table(path: Path) -> Labelled:
    """Return a table of two columns, label and sentence, under a header line. Messages hold line numbers only."""
    lines = read_bytes(path).decode("utf-8", errors="replace").split("\n")[1:]
    sentences, labels = [], []
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        label, separator, sentence = line.rstrip("\r").partition("\t")
        if not separator or not label.strip():
            raise TaskDataError(
                "must be a label, a tab and a sentence",
                where=f"{printable(path.name)!r}, line {number}",
                cure="Repair that line",
            )
        labels.append(label.strip())
        sentences.append(sentence)
    if not labels:
        raise TaskDataError(
            "it must hold sentences after its header, and it has none",
            where=repr(printable(path.name)),
            cure="Add sentences",
        )
    return Labelled(sentences, labels)
