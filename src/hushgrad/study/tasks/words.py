"""Sentences as rows of word numbers, and where the vocabulary comes from.

A vocabulary that is counted on private records is part of what is released, and no ε covers it: its presence alone
tells that somebody used a rare word. Four ways:

- "hashed" (the default): a word's number is a hash of its letters. Nothing is read from the records; different words
  may share a number.
- a file of words, one a line, which must be public: unknown words share the number 1.
- "counted": the most frequent words of the training records, counted with noise at an ε of its own, which is charged
  together with training (`counted`). All other words share the number 1.
- "train": the most frequent words of the training records. Only for comparison; the report says that ε does not cover
  it.

Number 0 is padding.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hushgrad.errors import TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks.counted import MOST_WORDS, bucket_of
from hushgrad.study.tasks.files import read_bytes

HASHED, FROM_TRAINING, LISTED = "hashed", "train", "listed"
BUCKETS = 1 << 14
MAX_VOCABULARY_BYTES = 1 << 24
PADDING, UNKNOWN = 0, 1
LENGTH = 32

FITTED = (
    "the vocabulary was counted on the training records, without noise: which words are in it is outside ε "
    "(--vocabulary hashed, or a public file, avoids this)"
)

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?|[^\w\s]")


def words_of(sentence: str) -> list[str]:
    """Return the words and marks of a sentence, in lower case."""
    return _WORD.findall(sentence.lower())


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Numbers for words: `number_of` maps a word to 1 … size − 1; 0 is padding."""

    number_of: Callable[[str], int]
    size: int
    outside_the_guarantee: tuple[str, ...] = ()

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Return [N, LENGTH] int64; longer sentences are cut, shorter ones padded with 0.

        Guarantee: with a hashed or a public vocabulary, a sentence's numbers depend on that sentence alone.
        """
        rows = torch.zeros(len(sentences), LENGTH, dtype=torch.int64)
        known: dict[str, int] = {}
        for row, sentence in enumerate(sentences):
            for place, word in enumerate(words_of(sentence)[:LENGTH]):
                if word not in known:
                    known[word] = self.number_of(word)
                rows[row, place] = known[word]
        return rows


def make_vocabulary(kind: str | None, training_sentences: Sequence[str]) -> Vocabulary:
    """Return the vocabulary `kind`: None or "hashed", "train", or the path of a public file of words."""
    if kind is None or kind == HASHED:
        return Vocabulary(_hashed, BUCKETS + 1)
    if kind == FROM_TRAINING:
        counts = Counter(word for sentence in training_sentences for word in words_of(sentence))
        return listed_vocabulary([word for word, _ in counts.most_common(MOST_WORDS)], (FITTED,))
    return listed_vocabulary(public_words(kind))


def public_words(file: str) -> list[str]:
    """Return the words of a public file, one on each line. Raises TaskDataError where there are none."""
    text = read_bytes(Path(file), limit=MAX_VOCABULARY_BYTES).decode("utf-8", errors="replace")
    words = list(dict.fromkeys(line.strip().lower() for line in text.splitlines() if line.strip()))
    if not words:
        raise TaskDataError(
            "the file must hold words, one on each line, and it has none",
            where="--vocabulary",
            cure="Choose another file",
        )
    return words


def read_sentences(path: Path) -> list[str]:
    """Return the sentences of a file under a header line: whole lines, or with two columns what follows the label."""
    header, *lines = read_bytes(path).decode("utf-8", errors="replace").split("\n")
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    sentences = [line.partition("\t")[2] if "\t" in header else line for line in lines]
    if not sentences:
        raise TaskDataError(
            "it must hold sentences after its header line, and it has none",
            where=repr(printable(path.name)),
            cure="Add a header line and sentences",
        )
    return sentences


def require_sentences(rows: Sequence[Any]) -> None:
    """Raise TaskDataError for a row that is no text, by its number."""
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, str):
            raise TaskDataError(
                f"must be a sentence, got {type(row).__name__}", where=f"row {number}", cure="Pass text"
            )


def counted_vocabulary(buckets: Sequence[int]) -> Vocabulary:
    """Return the vocabulary of these buckets of `counted`, in their order."""
    place = {bucket: number for number, bucket in enumerate(buckets, start=UNKNOWN + 1)}
    return Vocabulary(lambda word: place.get(bucket_of(word), UNKNOWN), len(place) + UNKNOWN + 1)


def _hashed(word: str) -> int:
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "big") % BUCKETS


def listed_vocabulary(words: Sequence[str], outside: tuple[str, ...] = ()) -> Vocabulary:
    """Return the vocabulary of these words, in their order."""
    place = {word: number for number, word in enumerate(words, start=UNKNOWN + 1)}
    return Vocabulary(lambda word: place.get(word, UNKNOWN), len(words) + UNKNOWN + 1, outside)
