"""Fine-tune a small language model with LoRA on instructions and answers, by TRL's SFTTrainer.

Run `python examples/sft_lora.py`. With `--data pairs.jsonl` (an object with `prompt` and `completion` on each line) it
trains on those; without it on pairs that it makes up. No model or data is downloaded: put the name of a model in the
place of `small_model()`, and its own tokenizer in the place of `tokenizer()`.
"""

from __future__ import annotations

import argparse
import json
import random
import string
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from hushgrad import Privacy
from hushgrad.integrations.transformers import private

LETTERS = ["<pad>", "<s>", "</s>", "<other>", *string.ascii_lowercase, *string.digits, " ", "?", ".", ":"]
LONGEST = 48
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red"}


def invented(count: int) -> list[dict[str, str]]:
    """Return questions and answers."""
    chance = random.Random(0)
    things = chance.choices(list(COLOURS), k=count)
    return [
        {"prompt": f"note {number % 10}: colour of {thing}?", "completion": f" {COLOURS[thing]}."}
        for number, thing in enumerate(things)
    ]


def read(path: str) -> list[dict[str, str]]:
    """Return the pairs of a file with one JSON object on each line."""
    with open(path, encoding="utf-8") as file:
        return [{name: row[name] for name in ("prompt", "completion")} for row in map(json.loads, file)]


def tokenizer() -> Any:
    """Return one token for each letter: a vocabulary that was read off the records would tell of them."""
    plain = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="<other>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<other>"
    )


def small_model() -> Any:
    """Return a small model without knowledge."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(LETTERS), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=LONGEST, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def main() -> None:
    """Train the adapters, and print the guarantee."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="a file with a prompt and a completion on each line, as JSON")
    parser.add_argument("--out", default="runs/sft_lora")
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    rows = read(given.data) if given.data else invented(2_000)
    trainer = private(SFTTrainer)(
        model=small_model(),
        args=SFTConfig(
            output_dir=given.out,
            per_device_train_batch_size=32,  # records in memory
            gradient_accumulation_steps=4,  # so a logical batch has 128 records on average
            max_steps=given.steps,
            max_length=LONGEST,
            learning_rate=1e-2,
            logging_steps=10,
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        privacy=Privacy(max_grad_norm=1.0, target_epsilon=given.epsilon, target_delta=1 / (2 * len(rows))),
    )
    trainer.train()
    trainer.save_model()  # the adapters alone
    print(trainer.guarantee())


if __name__ == "__main__":
    main()
