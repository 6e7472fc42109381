"""The same model, data and settings trained with hushgrad and with Opacus, at the same ε and δ.

    python -m benchmarks.accuracy --data DIR --out results.json

The settings are the tasks' own for that ε, but for views of images (`augmentations`), which Opacus cannot clip as one
gradient. Both libraries draw Poisson batches, clip to the same norm and are calibrated to the same target: Opacus by
its default accountant, hushgrad by its own. Each run starts from the parameters that its seed gives; noise is never the
same. Opacus' own way with embeddings holds a gradient of the whole table for each example (2 GB for SST-2's settings),
so the transformer is trained with its ghost clipping, which gives the same sums.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad.study.averaging import ParameterAverage
from hushgrad.study.configuration import OPTIMIZERS, Privacy, RunConfig, suggested_run
from hushgrad.study.frozen import with_features_computed_once
from hushgrad.study.outcome import Callbacks
from hushgrad.study.scoring import score
from hushgrad.study.tasks import TASKS, Task, TaskOptions, load_task
from hushgrad.study.training import model_for, train
from hushgrad.study.transformer import Transformer

DELTA = 1e-5
SUBJECTS: dict[str, tuple[str, str | None, tuple[str, ...] | None, str | None]] = {
    "digits": ("digits", None, None, None),
    "MNIST": ("mnist", "mnist", None, "cnn"),
    "MNIST, features": ("mnist", "mnist", None, "scatter-linear"),
    "Adult": ("csv", "adult", None, None),
    "SST-2": ("text", "sst2", ("0", "1"), None),
}
"""By label: task, folder within the data, classes, and the model where it is named."""


def config_of(label: str, data: Path, epsilon: float | None, seed: int) -> RunConfig:
    """Return the task's shipped settings at an ε (None: without privacy)."""
    task, folder, classes, model = SUBJECTS[label]
    clip = TASKS[task].recipe_at(epsilon, model).max_grad_norm
    privacy = None if epsilon is None else Privacy(target_epsilon=epsilon, delta=DELTA, max_grad_norm=clip)
    options = TaskOptions(data=data / folder if folder else None, classes=classes)
    suggested = suggested_run(task, privacy=privacy, options=options, model=model)
    return replace(suggested, seed=seed, threads=1, augmentations=0)


def with_hushgrad(config: RunConfig, task: Task) -> dict[str, Any]:
    """Train by `hushgrad.study` and return accuracy, ε, σ and steps."""
    _, outcome = train(config, task, Callbacks())
    spent = outcome.spent
    return {
        "test_accuracy": outcome.test_accuracy,
        "epsilon": spent.guarantee.epsilon if spent else None,
        "noise_multiplier": spent.noise_multiplier if spent else None,
        "steps": outcome.steps,
        "seconds": outcome.seconds,
    }


def with_opacus(config: RunConfig, task: Task) -> dict[str, Any]:
    """Train the same with Opacus and return accuracy, ε, σ and steps."""
    import time

    from opacus import PrivacyEngine

    assert config.privacy is not None
    assert config.privacy.target_epsilon is not None
    model = model_for(config, task)
    model, task, _ = with_features_computed_once(model, task, "cpu")
    if isinstance(model, Transformer):
        # The same network and parameters; Opacus' rule for embeddings needs the positions once per example.
        model.places = places_of_each  # type: ignore[method-assign]
    optimizer = OPTIMIZERS[config.optimizer](model.parameters(), config.learning_rate, config.momentum)
    loader = DataLoader(task.train, batch_size=config.batch_size)
    began = time.perf_counter()
    engine = PrivacyEngine()
    ghost = isinstance(model, Transformer)
    criterion, steps = nn.CrossEntropyLoss(), 0
    private, optimizer, *others = engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        criterion=criterion,
        data_loader=loader,
        target_epsilon=config.privacy.target_epsilon,
        target_delta=config.privacy.delta,
        epochs=config.epochs,
        max_grad_norm=config.privacy.max_grad_norm,
        grad_sample_mode="ghost" if ghost else "hooks",
    )
    criterion, batches = others if ghost else (criterion, others[0])
    average = ParameterAverage(model, config.average_decay) if config.average_decay else None
    for _ in range(config.epochs):
        for inputs, labels in batches:
            steps += 1
            optimizer.zero_grad()
            # An empty draw is a step of noise alone; Opacus' hooks take the empty batch.
            criterion(private(inputs), labels).backward()
            optimizer.step()
            if average is not None:
                average.update(model)
    return {
        "test_accuracy": score(private if average is None else average.model, task.test, "cpu").accuracy,
        "epsilon": engine.get_epsilon(config.privacy.delta),
        "noise_multiplier": optimizer.noise_multiplier,
        "steps": steps,
        "seconds": time.perf_counter() - began,
    }


def places_of_each(numbers_BT: Tensor) -> Tensor:
    """Return the numbers of the positions for every example, [B, T]: `Transformer.places` has them once."""
    return torch.arange(numbers_BT.shape[1]).expand_as(numbers_BT).contiguous()


def main() -> None:
    """Compare on every task and write the results after each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="opacus")
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for label in arguments.only:
        found: dict[str, list[dict[str, Any]]] = {"ordinary": [], "hushgrad": [], "opacus": []}
        for seed in range(arguments.seeds):
            config = config_of(label, arguments.data, arguments.epsilon, seed)
            task = load_task(config.task, config.options)
            found["ordinary"].append(with_hushgrad(replace(config, privacy=None), task))
            found["hushgrad"].append(with_hushgrad(config, task))
            found["opacus"].append(with_opacus(config, task))
            results[label] = found
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")
        for name, runs in found.items():
            reached = [run["test_accuracy"] for run in runs]
            spread = statistics.stdev(reached) if len(reached) > 1 else 0.0
            print(f"{label:8} {name:9} {statistics.fmean(reached):.1%} ± {100 * spread:.1f}", flush=True)


if __name__ == "__main__":
    main()
