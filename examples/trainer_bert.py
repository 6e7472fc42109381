"""Fine-tune a small BERT with the Trainer: which of two moods a sentence has.

Run `python examples/trainer_bert.py`. With `--data train.tsv` (a sentence and a label on each line, as SST-2 has them)
it trains on those; without it on sentences that it makes up. No model or data is downloaded: put `from_pretrained`
where the model is made.
"""

from __future__ import annotations

import argparse
import csv
import random
import zlib

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hushgrad import Privacy
from hushgrad.integrations.transformers import private

BUCKETS, LONGEST = 2_000, 24
GOOD, BAD = ["warm", "funny", "clever", "tender", "bright"], ["dull", "cold", "clumsy", "loud", "empty"]
REST = ["the", "film", "story", "cast", "plot", "music", "end", "scene", "and", "is", "was", "a", "very", "quite"]


def invented(count: int) -> list[tuple[str, int]]:
    """Return sentences with words of one mood each."""
    chance = random.Random(0)
    rows = []
    for _ in range(count):
        label = chance.randrange(2)
        words = chance.choices(REST, k=chance.randint(4, 12)) + chance.choices(GOOD if label else BAD, k=2)
        chance.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


def read(path: str) -> list[tuple[str, int]]:
    """Return the sentences and labels of a TSV file with a header."""
    with open(path, encoding="utf-8", newline="") as file:
        return [(row["sentence"], int(row["label"])) for row in csv.DictReader(file, delimiter="\t", quoting=3)]


def encoded(rows: list[tuple[str, int]]) -> list[dict[str, list[int] | int]]:
    """Return ids and labels. A word's id is its hash: a vocabulary that was read off the records would tell of them."""
    return [
        {"input_ids": [1 + zlib.crc32(w.encode()) % (BUCKETS - 1) for w in text.split()][:LONGEST], "labels": label}
        for text, label in rows
    ]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad every sentence to one public length."""
    ids = torch.tensor([row["input_ids"] + [0] * (LONGEST - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor([r["labels"] for r in rows])}


def main() -> None:
    """Train, evaluate, and print the guarantee."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="a TSV file with the columns sentence and label")
    parser.add_argument("--out", default="runs/trainer_bert")
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    rows = encoded(read(given.data) if given.data else invented(3_000))
    held_out = len(rows) // 6
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=BUCKETS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
        )
    )
    trainer = private(
        Trainer
    )(
        model=model,
        args=TrainingArguments(
            output_dir=given.out,
            per_device_train_batch_size=64,  # records in memory
            gradient_accumulation_steps=4,  # so a logical batch has 256 records on average
            num_train_epochs=given.epochs,
            learning_rate=2e-3,
            eval_strategy="epoch",
            logging_steps=10,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=rows[held_out:],
        eval_dataset=rows[:held_out],
        data_collator=collate,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
        privacy=Privacy(max_grad_norm=1.0, target_epsilon=given.epsilon, target_delta=1 / (2 * len(rows))),
    )
    trainer.train()
    print(f"accuracy on held-out sentences: {trainer.evaluate()['eval_accuracy']:.1%}")
    print(trainer.guarantee())


if __name__ == "__main__":
    main()
