"""Weights of classes: an example's own loss times the weight of its class. Given, or from counts that are paid for.

Weights make a rare class count as much as a large one. Each example's loss is multiplied by the weight of its own class
and by nothing else: the mean over a batch is divided by the number of examples, never by the sum of their weights,
which would make an example's gradient follow from the others of its batch. Clipping comes after the weight, so one
example still adds at most C. Only ratios matter: weights are divided by the largest, so that no gradient becomes longer
than it was, and the clip norm keeps its meaning. (What a larger weight adds would be clipped away again.)

Exact shares of classes are a fact about the records: weights that were computed from them are not public. `counted` has
the classes counted with noise, as a release in the account of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from hushgrad.arguments import positive_number
from hushgrad.clipping.named import NORMALISING
from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable
from hushgrad.releases.histogram import Histogram
from hushgrad.releases.released import Released
from hushgrad.study.settings import Kind
from hushgrad.study.tasks.task import COUNTED, Preparation, Task

ClassWeights = str | tuple[tuple[str, float], ...]
"""`COUNTED`, or classes with their weights; a class that is not named weighs 1."""

Weights = tuple[float, ...]


def _parse(given: str) -> ClassWeights:
    if given.strip() == COUNTED:
        return COUNTED
    pairs = [part.rsplit(":", 1) for part in given.split(",")]
    return tuple((name.strip(), float(weight)) for name, weight in pairs)


def _check(name: str, value: Any) -> None:
    if value == COUNTED:
        return
    is_pairs = isinstance(value, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value)
    if not is_pairs or not value or not all(isinstance(label, str) for label, _ in value):
        raise InvalidArgumentError(
            "must be pairs of a class and its weight, or 'counted'", where=name, cure='Pass such as (("yes", 20.0),)'
        )
    for label, weight in value:
        positive_number(f"the weight of class {printable(label)!r}", weight)
    if len({label for label, _ in value}) < len(value):
        raise InvalidArgumentError("must name each class once", where=name, cure="Remove the repeated names")


CLASS_WEIGHTS = Kind(_parse, _check, "CLASS:WEIGHT,…|counted", "such as yes:20, or counted")


def check_class_weights(weights: ClassWeights | None, epsilon: float | None, clipping: str | None) -> None:
    """Raise InvalidArgumentError where weights lack what they go with, or a clip rule would take them away again."""
    if (weights == COUNTED) != (epsilon is not None):
        raise InvalidArgumentError(
            "'counted' and class_weights_epsilon go together: classes are counted with noise, and "
            "class_weights_epsilon is the most that this alone may cost of the total epsilon",
            where="class_weights",
            cure="Give both (class_weights_epsilon=0.1 does for thousands of records), or neither",
        )
    rule = None if clipping is None else clipping.partition(":")[0]
    if weights is not None and rule in NORMALISING:
        raise InvalidArgumentError(
            f"{rule} clipping brings every gradient to about the same norm, so that weights are lost",
            where="class_weights",
            cure="Take flat clipping, or leave the weights out",
        )


def check_names(weights: ClassWeights | None, classes: Sequence[str]) -> None:
    """Raise InvalidArgumentError for a weight of a class that the task does not have."""
    if weights is None or isinstance(weights, str):
        return
    unknown = [printable(name) for name, _ in weights if printable(name) not in classes]
    if unknown:
        raise InvalidArgumentError(
            f"the task has no class {', '.join(unknown)}; its classes are {', '.join(classes[:40])}",
            where="class_weights",
            cure="Name classes of the task",
        )


def given_weights(weights: Iterable[tuple[str, float]], classes: Sequence[str]) -> Weights:
    """Return the weight of each class, from those that were given; the largest is 1."""
    named = {printable(name): float(weight) for name, weight in weights}
    found = [named.get(name, 1.0) for name in classes]
    return tuple(weight / max(found) for weight in found)


def balanced_weights(counts: Sequence[float]) -> Weights:
    """Return weights by which every class counts the same: the smallest count over each; the largest is 1."""
    return tuple(min(counts) / count for count in counts)


def counting(task: Task, epsilon: float) -> Preparation:
    """Return the release that weights are computed from: how many training examples each class has, with noise.

    What is kept of a count is at least the noise's standard deviation, and 1: noise alone makes no weight.
    """
    labels, classes = task.train.tensors[1].tolist(), range(task.num_classes)

    def learned(found: Released) -> tuple[float, ...]:
        least = max(1.0, found.noise_std)
        return tuple(max(least, count) for count in found.noised[: len(classes)].tolist())

    def ready(counts: tuple[float, ...]) -> Task:
        if len(counts) != len(classes) or not all(math.isfinite(count) and count >= 1 for count in counts):
            raise InvalidArgumentError(
                "the file is damaged: it does not hold a count of each class",
                where="class_counts.json",
                cure="Restore it from a copy, or begin a new run",
            )
        return replace(task, class_weights=balanced_weights(counts), class_counts=counts, releases=task.releases + 1)

    return Preparation(epsilon, Histogram(categories=classes), labels, learned, ready)
