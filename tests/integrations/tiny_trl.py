"""A tokenizer without a download, and the tiny data as TRL reads it."""

from __future__ import annotations

from typing import Any

from tiny import VOCABULARY, Texts


def tokenizer() -> Any:
    """Words w3 to w49, of which each is a token of that number."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def words(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def texts() -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"text": words(row["input_ids"])} for row in Texts().rows])


def completions() -> Any:
    from datasets import Dataset

    rows = Texts().rows
    return Dataset.from_dict(
        {
            "prompt": [words(row["input_ids"][:2]) for row in rows],
            "completion": [" " + words(row["input_ids"][2:]) for row in rows],
        }
    )


def masked() -> Any:
    """Tokens with a mask of those that an assistant said."""
    from datasets import Dataset

    rows = Texts().rows
    return Dataset.from_dict(
        {
            "input_ids": [row["input_ids"] for row in rows],
            "assistant_masks": [[place % 2 for place in range(len(row["input_ids"]))] for row in rows],
        }
    )


def preferences() -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "prompt": words(row["input_ids"][:2]),
                "chosen": " " + words(row["input_ids"][1:]),
                "rejected": " " + words(row["input_ids"][:2]),
            }
            for row in Texts().rows
        ]
    )
