"""Sentences as rows of token numbers, by the tokenizer of a pretrained model.

Nothing is read off the training records: the tokenizer comes with the model, and each sentence is cut and padded by
itself. Number 0 is padding; a token's number is one more than the tokenizer's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hushgrad.extras import needs_extra
from hushgrad.study.tasks.words import read_sentences, require_sentences

TOKENS = 64
"""How many tokens of a sentence are read, where nobody says it."""

FROM_BASE = (
    "the base model and its tokenizer count as public: what they had learned before, should it be from the same "
    "records, no ε covers"
)


@dataclass(frozen=True, slots=True)
class TokenEncoder:
    """Rows are sentences; `tokenizer` is the JSON of the package tokenizers, `length` how many tokens are read.

    Guarantee: a sentence's numbers depend on that sentence alone.
    """

    tokenizer: str = field(repr=False)
    length: int

    def read(self, path: Path) -> Sequence[Any]:
        """Return the sentences of a TSV file under a header line: its last column."""
        return read_sentences(path)

    def encode(self, rows: Sequence[Any]) -> Tensor:
        """Return [N, length] token numbers, int64."""
        require_sentences(rows)
        encoded = torch.zeros(len(rows), self.length, dtype=torch.int64)
        tokenizer = _tokenizer(self.tokenizer, self.length)
        for row, found in enumerate(tokenizer.encode_batch(list(rows))):
            encoded[row, : len(found.ids)] = torch.tensor(found.ids, dtype=torch.int64) + 1
        return encoded

    @property
    def vocabulary_size(self) -> int:
        """How many numbers of tokens there are, that of padding included."""
        return 1 + int(_tokenizer(self.tokenizer, self.length).get_vocab_size())

    def as_json(self) -> dict[str, Any]:
        """Return the tokenizer and the length."""
        return {"kind": "tokens", "tokenizer": self.tokenizer, "length": self.length}


@lru_cache(maxsize=2)
def _tokenizer(text: str, length: int) -> Any:
    """Return the tokenizer, which cuts at `length` and pads nothing. Raises ValueError for a text that is none."""
    with needs_extra("text", "a pretrained model"):
        from tokenizers import Tokenizer
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises Exception itself
        raise ValueError("not a tokenizer") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return tokenizer
