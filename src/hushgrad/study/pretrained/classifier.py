"""A pretrained classifier as the training command takes models: rows of token numbers in, logits out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hushgrad.errors import CheckpointError, where_raised
from hushgrad.study.pretrained.folder import config_in, network_in, network_of, refused
from hushgrad.study.pretrained.tuning import prepare

WORD = "architecture"
"""The word in the header of a model's file that holds the configuration."""


@dataclass(frozen=True, slots=True)
class Base:
    """What a classifier is made from: the folder with its weights, or its configuration alone, as JSON.

    `lora_rank` is that of adapters, where it gets some.
    """

    lora_rank: int
    folder: Path | None = None
    architecture: str | None = None


class PretrainedClassifier(nn.Module):
    """A classifier of transformers; padding is masked for each sentence, and dropout is off.

    Dropout stays off in training: clipping and noise hold a model back enough (Li et al. 2022, "Large language models
    can be strong differentially private learners", train without).
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.padding = int(network.config.pad_token_id)
        network.config.name_or_path = ""  # a path of this machine, and a model's file goes elsewhere
        self.architecture = str(network.config.to_json_string(use_diff=False))
        self.train()

    def train(self, mode: bool = True) -> PretrainedClassifier:
        """Set the mode, of which dropout takes no notice."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, numbers_BT: Tensor) -> Tensor:
        """Return logits [B, K] for token numbers plus one, [B, T]; 0 is padding. A row of padding alone reads it."""
        present_BT = numbers_BT != 0
        present_BT = present_BT | ~present_BT.any(dim=1, keepdim=True)
        tokens_BT = torch.where(numbers_BT == 0, self.padding, numbers_BT - 1)
        logits: Tensor = self.network(input_ids=tokens_BT, attention_mask=present_BT.long()).logits
        return logits


def classifier(tuning: str, base: Base, *, num_classes: int, vocabulary_size: int, length: int) -> nn.Module:
    """Return the model of a base: of its folder, or with weights that are still to be filled in.

    Raises InvalidArgumentError for a folder that cannot be taken, or that is too small for rows of this `length`;
    CheckpointError for an architecture that is none.
    """
    if base.folder is None:
        return _tuned(PretrainedClassifier(_network_of(base.architecture)), tuning, base)
    config = config_in(base.folder, num_classes)
    if vocabulary_size - 1 > config.vocab_size:
        raise refused(
            base.folder,
            f"its tokenizer has {vocabulary_size - 1} tokens and its model {config.vocab_size}",
            "Take the tokenizer that belongs to the model",
        )
    model = PretrainedClassifier(network_in(base.folder, config))
    _require_room(model, base.folder, length)
    return _tuned(model, tuning, base)


def header_words(model: nn.Module) -> Mapping[str, str]:
    """Return what the file of a model says beside its values, so that the model can be made of the file."""
    return {WORD: model.architecture} if isinstance(model, PretrainedClassifier) else {}


def _tuned(model: PretrainedClassifier, tuning: str, base: Base) -> PretrainedClassifier:
    prepare(model.network, tuning, base.lora_rank)
    return model.train()  # adapters are new modules


def _network_of(architecture: str | None) -> Any:
    try:
        config: dict[str, Any] = json.loads(architecture or "")
        return network_of(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"its header does not describe a model that this version of transformers knows ({where_raised(error)})",
            where="model.safetensors",
            cure="Restore it from a copy of the run's folder, or install the version of transformers that trained it",
        ) from error


@torch.no_grad()
def _require_room(model: nn.Module, folder: Path, length: int) -> None:
    """Run one row of the full length."""
    try:
        model(torch.ones(1, length, dtype=torch.int64))
    except (IndexError, RuntimeError) as error:
        raise refused(folder, f"its model has no room for {length} tokens of a sentence", "Lower --tokens") from error
