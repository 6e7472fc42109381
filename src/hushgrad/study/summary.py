"""All that a reader needs to judge a run, as JSON values: what `summary.json` holds."""

from __future__ import annotations

import math
import platform
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import nn

from hushgrad._version import __version__
from hushgrad.printable import printable
from hushgrad.study.configuration import Privacy, RunConfig
from hushgrad.study.directory import ledger_end
from hushgrad.study.model_file import digest_of
from hushgrad.study.outcome import RunOutcome
from hushgrad.study.preparation import Prepared
from hushgrad.study.pretrained.tuning import LORA
from hushgrad.study.provenance import now
from hushgrad.study.score_words import scores_as_json
from hushgrad.study.scoring import right_on
from hushgrad.study.settings import settings_of
from hushgrad.study.tasks import Task, TaskOptions
from hushgrad.study.tasks.encoder_file import encoding_as_json, encoding_digest
from hushgrad.study.tasks.task import COUNTED
from hushgrad.study.tasks.words import FROM_TRAINING, HASHED

ORDINARY = "NOT PRIVATE: ordinary training, without clipping and without noise. No epsilon holds."

ALWAYS_OUTSIDE = (
    "training loss and training accuracy (metrics.jsonl, curves.png) are computed on training records without noise: "
    "keep them to yourself",
    "the test records: accuracy, AUC, recall and the shares of their classes are computed on them without noise",
    "the number of training records, the batch size and every other setting count as public",
    "settings chosen after looking at the results of other runs on the same records",
)


def title_of(config: RunConfig) -> str:
    """Return one line that says what a picture shows."""
    privacy = config.privacy
    if privacy is None:
        return f"{config.task}, {config.model}: ordinary training (NOT PRIVATE)"
    aim = (
        f"σ = {privacy.noise_multiplier:g}"
        if privacy.noise_multiplier is not None
        else f"ε ≤ {privacy.target_epsilon:g}"
    )
    rule = "" if privacy.clipping == "flat" else f"{privacy.clipping} clipping, "
    clipped = f"{rule}C = {privacy.max_grad_norm:g}"
    return f"{config.task}, {config.model}: {aim}, {clipped}, B = {config.batch_size}"


def outside_the_guarantee(task: Task, outcome: RunOutcome) -> tuple[str, ...]:
    """Return what epsilon does not cover; for a run without privacy, everything."""
    if not outcome.private:
        return ("everything: this run is not private",)
    return (*task.outside_the_guarantee, *ALWAYS_OUTSIDE)


def vocabulary_kind(config: RunConfig) -> str | None:
    """Return where the words' numbers come from: a kind of vocabulary, or a base's tokenizer; None without words."""
    if config.task != "text":
        return None
    if config.options.base is not None:
        return "tokenizer of the base model"
    kind = config.options.vocabulary or HASHED
    return kind if kind in (HASHED, COUNTED, FROM_TRAINING) else "public file"


def subgroups(model: nn.Module, task: Task, column: str | None, device: str) -> dict[str, Any] | None:
    """Return how many test examples of each subgroup there are and are classified rightly; None without a column."""
    if task.test_groups is None:
        return None
    right = right_on(model, task.test, device).tolist()
    counts = Counter(task.test_groups)
    hits = Counter(group for group, hit in zip(task.test_groups, right, strict=True) if hit)
    groups = [{"name": name, "count": counts[name], "right": hits[name]} for name in sorted(counts)]
    return {"column": printable(column or ""), "groups": groups}


def asked_for(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a run as its summary calls them; None for those of privacy in an ordinary run."""
    found: dict[str, Any] = {}
    for kind, part in ((RunConfig, config), (Privacy, config.privacy), (TaskOptions, config.options)):
        for name, setting in settings_of(kind).items():
            if setting.key is not None:
                found[setting.key] = None if part is None else getattr(part, name)
    return found


def summarise(config: RunConfig, prepared: Prepared, model: nn.Module, outcome: RunOutcome) -> dict[str, Any]:
    """Return all that a reader needs to judge a run, as JSON values. An infinite epsilon is written as "inf"."""
    task, spent, scores = prepared.task, outcome.spent, outcome.test_scores
    held = spent.guarantee if spent else None
    return {
        "status": outcome.status,
        "private": outcome.private,
        "test_accuracy": outcome.test_accuracy,
        "test_scores": None if scores is None else scores_as_json(scores, task.class_names),
        "epsilon": held.epsilon if held else math.inf,
        "delta": held.delta if held else None,
        "guarantee": str(held) if held else ORDINARY,
        "taken_on_trust": [condition.name for condition in held.conditions] if held else [],
        "outside_the_guarantee": outside_the_guarantee(task, outcome),
        "ledger": None if spent is None else ledger_end(spent.anchor),
        "steps": outcome.steps,
        "lost_steps": outcome.lost_steps,
        "planned_steps": outcome.planned_steps,
        "noise_multiplier": spent.noise_multiplier if spent else None,
        "sampling": held.sampling if held else "shuffled, every record once per pass",
        "sampling_rate": spent.sampling_rate if spent else None,
        "adjacency": held.adjacency if held else None,
        "accountant": held.accountant if held else None,
        **asked_for(config),
        "expected_batch_size": spent.expected_batch_size if spent else config.batch_size,
        "description": task.description,
        "classes": task.class_names,
        "schema_signed_by": task.signed_by,
        "vocabulary": vocabulary_kind(config),
        "vocabulary_noise_multiplier": prepared.noise_multiplier,
        "class_counts_noise_multiplier": prepared.class_noise_multiplier,
        "weights_of_classes": task.class_weights,
        "subgroups": subgroups(model, task, config.options.subgroup, config.device),
        "training_examples": len(task.train),
        "training_people": None if task.people is None else task.people.count,
        "test_examples": len(task.test),
        "input_shape": task.input_shape,
        "encoding_digest": None
        if task.encoder is None
        else encoding_digest(encoding_as_json(task.encoder, task.class_names)),
        "hidden_sizes": config.hidden_sizes if config.model == "mlp" else None,
        "depth": config.depth if config.model == "wrn" else None,
        "width": config.width if config.model == "wrn" else None,
        "lora_rank": config.lora_rank if config.model == LORA else None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "model_digest": digest_of(model),
        "wall_seconds": round(outcome.seconds, 3),
        "written": now(),
        "versions": {
            "hushgrad": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
