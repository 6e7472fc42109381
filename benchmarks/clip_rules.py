"""Does a clip norm have to be tuned? Flat clipping with a tuned C against automatic clipping with one γ.

    python -m benchmarks.clip_rules --data DIR --out docs/results/clip-rules.json --write-docs

Settings are those that the task ships for that ε, but for the learning rate and C. Both are chosen for flat clipping,
the learning rate alone for automatic clipping, by accuracy on training records that are left out, as
`benchmarks.validation` does. What was chosen is trained on all training records with several seeds, each scored once on
the test records. The runs are written out plainly (`benchmarks.written_out`); with one seed both rules get the same
draws and noise. Runs that `--out` holds already are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from benchmarks.accuracy import config_of
from benchmarks.validation import PARTS, without
from benchmarks.written_out import noise_multiplier_of, trained
from hushgrad import AutomaticClipping, ClipRule, FlatClipping
from hushgrad.study.configuration import RunConfig
from hushgrad.study.frozen import with_features_computed_once
from hushgrad.study.scoring import score
from hushgrad.study.tasks import Task, load_task
from hushgrad.study.training import model_for

PAGE = Path(__file__).resolve().parent.parent / "docs" / "clipping.md"
BEGIN, END = "<!-- clip-rules:begin -->\n", "<!-- clip-rules:end -->"
EPSILONS = (1.0, 3.0)
GAMMA = 0.01
MOST_TIMES = 64.0


@dataclass(frozen=True)
class Effort:
    """What is tried for a task, on how many parts of its training records in turn, and how many seeds are scored.

    The shipped learning rate is multiplied with `times`. Of SGD it is divided by C beside: the noise in the weights is
    then the same for every C. While the best of a rule is the first or last that was tried with its norm, one more is
    tried.
    """

    parts: int
    seeds: int
    norms: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    times: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)


EFFORTS = {
    "digits": Effort(parts=PARTS, seeds=20),
    "MNIST, features": Effort(parts=1, seeds=3, norms=(0.1, 1.0, 3.0), times=(0.5, 1.0, 2.0)),
    "Adult": Effort(parts=1, seeds=5),
    "SST-2": Effort(parts=1, seeds=3, norms=(0.1, 1.0, 3.0), times=(0.5, 1.0, 2.0)),
}
"""The smaller a task, the more: single runs on the digits differ by 1 to 3 points. A run takes 0.3 to 10 seconds."""

RULES = ("flat", "automatic")
VALIDATION_SEED = 100


@dataclass(frozen=True)
class Cell:
    """What is tried: a rule, its C, and what the shipped learning rate is multiplied with."""

    rule: str
    norm: float
    times: float

    @property
    def clip_rule(self) -> ClipRule:
        """The library's rule."""
        return FlatClipping(self.norm) if self.rule == "flat" else AutomaticClipping(self.norm, GAMMA)

    def settings(self, config: RunConfig) -> RunConfig:
        """Return the settings with this cell's learning rate; the shipped ones are for C = 1."""
        rate = config.learning_rate * self.times
        return replace(config, learning_rate=rate / self.norm if config.optimizer == "sgd" else rate)

    def __str__(self) -> str:
        return f"{self.rule}, C = {self.norm:g}, rate × {self.times:g}"


Scores = dict[str, list[float]]


@dataclass
class Results:
    """Accuracies by what was run, kept in a file: on parts left out, and on the test records."""

    path: Path
    validation: Scores
    test: Scores

    @classmethod
    def read(cls, path: Path) -> Results:
        """Return what the file holds, nothing if there is none."""
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return cls(path, found.get("validation", {}), found.get("test", {}))

    def write(self) -> None:
        """Write the file."""
        held = {"validation": self.validation, "test": self.test}
        text = json.dumps(held, indent=1, ensure_ascii=False, sort_keys=True)
        self.path.write_text(text + "\n", encoding="utf-8")

    def filled(self, scores: Scores, key: str, count: int, run: Callable[[int], float]) -> list[float]:
        """Return `count` accuracies, those that are missing from `run`, each kept when it ends."""
        found = scores.setdefault(key, [])
        while len(found) < count:
            found.append(round(run(len(found)), 5))
            self.write()
        return found[:count]


def key_of(label: str, epsilon: float, cell: Cell) -> str:
    """Return what the runs of a cell are kept under."""
    return f"{label}, ε = {epsilon:g}: {cell}"


def tried_at_first(rule: str, effort: Effort) -> list[Cell]:
    """Return the cells of the grid."""
    return [Cell(rule, norm, times) for norm in (effort.norms if rule == "flat" else (1.0,)) for times in effort.times]


def chosen(rule: str, effort: Effort, accuracy: Callable[[Cell], float]) -> Cell:
    """Return the best cell of a rule, after widening the grid while it lies on the edge of its learning rates."""
    tried = {cell: accuracy(cell) for cell in tried_at_first(rule, effort)}
    while True:
        best = max(tried, key=lambda cell: tried[cell])
        times = [cell.times for cell in tried if cell.norm == best.norm]
        if min(times) < best.times < max(times) or not 1 / MOST_TIMES < best.times < MOST_TIMES:
            return best
        wider = replace(best, times=best.times * (2 if best.times == max(times) else 0.5))
        tried[wider] = accuracy(wider)


class Runs:
    """Runs of one task at one ε that differ by their cell and seed, each scored on `task.test`."""

    def __init__(self, config: RunConfig, task: Task) -> None:
        self._config, self._task = config, task
        self._noise_multiplier, self._steps = noise_multiplier_of(config, len(task.train))

    def accuracy(self, cell: Cell, seed: int) -> float:
        """Return the accuracy of a run."""
        config = cell.settings(self._config)
        model = trained(config, self._task, cell.clip_rule, self._noise_multiplier, self._steps, seed)
        return score(model, self._task.test, "cpu").accuracy


def measured(label: str, data: Path, epsilon: float, task: Task, results: Results) -> None:
    """Choose settings of both rules and score them, and keep every run when it ends."""
    effort = EFFORTS[label]
    config = on_features(config_of(label, data, epsilon, 0))
    smaller = replace(config, batch_size=config.batch_size * (PARTS - 1) // PARTS)
    parts = [Runs(smaller, without(task, part)) for part in range(effort.parts)]
    whole = Runs(config, task)

    def on_parts(cell: Cell) -> float:
        def run(part: int) -> float:
            return parts[part].accuracy(cell, VALIDATION_SEED + part)

        key = key_of(label, epsilon, cell)
        return statistics.fmean(results.filled(results.validation, key, effort.parts, run))

    for rule in RULES:
        best = chosen(rule, effort, on_parts)
        key, run = key_of(label, epsilon, best), partial(whole.accuracy, best)
        reached = results.filled(results.test, key, effort.seeds, run)
        print(f"{key}: {statistics.fmean(reached):.2%}, on validation {on_parts(best):.2%}", flush=True)


HEAD = (
    "task, ε",
    "flat: C, rate",
    "automatic: rate",
    "validation: flat",
    "automatic",
    "test: flat",
    "automatic",
    "automatic − flat",
    "seeds",
)


def table(results: Results) -> str:
    """Return the table in Markdown: what was chosen, and accuracies in percent.

    Differences on the test records are those of runs with one seed, ± their standard error. A row whose runs on the
    test records are not all there says so; one whose grid is not all there is left out.
    """
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for label, effort in EFFORTS.items():
        for epsilon in EPSILONS:
            found = [_chosen_of(results, label, epsilon, rule) for rule in RULES]
            if not all(found):
                continue
            flat, automatic = (cell for cell in found if cell is not None)
            keys = [key_of(label, epsilon, cell) for cell in (flat, automatic)]
            validation = [f"{100 * statistics.fmean(results.validation[key]):.2f}" for key in keys]
            runs = [results.test.get(key, []) for key in keys]
            test = _compared(*runs) if all(len(run) == effort.seeds for run in runs) else ["not run yet", "", "", ""]
            told = [f"{label}, {epsilon:g}", f"{flat.norm:g}, × {flat.times:g}", f"× {automatic.times:g}"]
            lines.append(f"| {' | '.join([*told, *validation, *test])} |")
    return "\n".join(lines)


def _chosen_of(results: Results, label: str, epsilon: float, rule: str) -> Cell | None:
    """Return the best cell on the records left out; None if a part of the grid is missing."""
    start, effort = f"{label}, ε = {epsilon:g}: {rule}, C = ", EFFORTS[label]
    found: dict[Cell, float] = {}
    for key, scores in results.validation.items():
        if key.startswith(start) and len(scores) == effort.parts:
            norm, times = key.removeprefix(start).split(", rate × ")
            found[Cell(rule, float(norm), float(times))] = statistics.fmean(scores)
    if not found.keys() >= set(tried_at_first(rule, effort)):
        return None
    return max(found, key=lambda cell: found[cell])


def _compared(flat: list[float], automatic: list[float]) -> list[str]:
    gaps = [b - a for a, b in zip(flat, automatic, strict=True)]
    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    cells = [f"{100 * statistics.fmean(runs):.2f} ± {100 * statistics.stdev(runs):.2f}" for runs in (flat, automatic)]
    return [*cells, f"{100 * statistics.fmean(gaps):+.2f} ± {100 * error:.2f}", str(len(gaps))]


def on_features(config: RunConfig) -> RunConfig:
    """Return the settings where features that are not learned are computed already: a linear layer is left."""
    return replace(config, model="mlp", hidden_sizes=()) if config.model == "scatter-linear" else config


def loaded(label: str, data: Path) -> Task:
    """Return the task, with the features of a model that does not learn them.

    Columns that are 0 in every record are left out: their weights change no sum of gradients and no answer.
    """
    config = config_of(label, data, EPSILONS[0], 0)
    task = load_task(config.task, config.options)
    if config.model == "scatter-linear":
        model = model_for(config, task)
        task = with_features_computed_once(model, task, "cpu")[1]
    if len(task.input_shape) > 1 or task.vocabulary_size is not None:
        return task
    used = task.train.tensors[0].any(0) | task.test.tensors[0].any(0)
    train, test = (TensorDataset(part.tensors[0][:, used], part.tensors[1]) for part in (task.train, task.test))
    return replace(task, train=train, test=test)


def main() -> None:
    """Run what is missing, keep each run when it ends, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(EFFORTS), choices=list(EFFORTS))
    parser.add_argument("--epsilons", nargs="*", type=float, default=list(EPSILONS))
    parser.add_argument("--write-docs", action="store_true", help="Put the table into docs/clipping.md.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = Results.read(arguments.out)
    for label in arguments.only:
        task = loaded(label, arguments.data)
        for epsilon in arguments.epsilons:
            measured(label, arguments.data, epsilon, task, results)
    print(table(results))
    if arguments.write_docs:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        assert end, f"{PAGE} lacks its markers"
        PAGE.write_text(f"{before}{BEGIN}{table(results)}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
