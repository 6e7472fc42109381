"""Settings tried on training records alone: cross-validation, in which no test record is seen.

    python -m benchmarks.validation --task mnist --data DIR --model scatter-linear --learning-rates 0.3,0.8 --out FILE

The training records of a task are divided into PARTS parts by a public order. A run trains on all parts but one, by
`hushgrad.study` with the settings that the task ships for that ε and model, and is scored on the part left out. Batches
are smaller in proportion, so that the sampling rate and the number of steps stay what they will be on all records.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from hushgrad.study.configuration import Privacy, RunConfig, max_grad_norm_for, suggested_run
from hushgrad.study.outcome import Callbacks
from hushgrad.study.tasks import TASKS, Task, TaskOptions, load_task
from hushgrad.study.training import train

DELTA = 1e-5
PARTS = 5
PUBLIC_SEED = 20261130
COLUMNS = ("task", "model", "epsilon", "learning_rate", "batch_size", "epochs", "part", "accuracy")


def without(task: Task, part: int) -> Task:
    """Return a task that trains on the training records of `task` outside of a part and tests on those in it."""
    count = len(task.train)
    parts = np.array_split(np.random.Generator(np.random.PCG64(PUBLIC_SEED)).permutation(count), PARTS)
    kept = np.concatenate([rows for number, rows in enumerate(parts) if number != part])
    train_set, held_out = (
        TensorDataset(*(tensor[torch.from_numpy(rows)] for tensor in task.train.tensors))
        for rows in (kept, parts[part])
    )
    return replace(task, train=train_set, test=held_out)


def config_of(
    task: str, options: TaskOptions, model: str, epsilon: float, learning_rate: float, epochs: int | None
) -> RunConfig:
    """Return the settings of a run over all parts but one."""
    privacy = Privacy(target_epsilon=epsilon, delta=DELTA, max_grad_norm=max_grad_norm_for(task, epsilon, model))
    found = suggested_run(task, privacy=privacy, options=options, model=model)
    return replace(
        found,
        learning_rate=learning_rate,
        batch_size=found.batch_size * (PARTS - 1) // PARTS,
        epochs=epochs or found.epochs,
        threads=1,
    )


def _numbers(given: str) -> list[float]:
    return [float(number) for number in given.split(",")]


def main() -> None:
    """Try every learning rate at every ε and write each run as it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--epsilons", type=_numbers, default=[1.0, 3.0, 8.0])
    parser.add_argument("--learning-rates", type=_numbers, required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--parts", type=int, default=PARTS, help="how many parts are left out in turn")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    options = TaskOptions(data=given.data)
    whole = load_task(given.task, options)
    with given.out.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for epsilon in given.epsilons:
            for rate in given.learning_rates:
                config = config_of(given.task, options, given.model, epsilon, rate, given.epochs)
                reached = []
                for part in range(given.parts):
                    accuracy = train(config, without(whole, part), Callbacks())[1].test_accuracy
                    assert accuracy is not None  # the run is completed
                    reached.append(accuracy)
                    size, passes = config.batch_size, config.epochs
                    table.writerow((given.task, given.model, epsilon, rate, size, passes, part, f"{accuracy:.4f}"))
                    file.flush()
                print(f"ε = {epsilon:g}, learning rate {rate:g}: {statistics.fmean(reached):.1%}", flush=True)


if __name__ == "__main__":
    main()
