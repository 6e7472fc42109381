"""What a model reached on the test records: computed anew from the counts that the run measured, and compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.report.comparison import Comparison, shown
from hushgrad.study.report.run_files import METRICS, SUMMARY, RunFiles
from hushgrad.study.report.values import finite, same
from hushgrad.study.score_words import scores_as_json, verdict
from hushgrad.study.scoring import Scores


def result_facts(files: RunFiles) -> dict[str, Any]:
    """Return the last test accuracy, its standard error from the number of test records, and what stands beside it."""
    accuracy = files.measured_accuracy()
    if accuracy is None:
        accuracy = files.said("test_accuracy")
    count, scores = files.said("test_examples"), measured_scores(files)
    error = (
        math.sqrt(accuracy * (1 - accuracy) / count) if accuracy is not None and 0 <= accuracy <= 1 and count else None
    )
    return {
        "test_accuracy": accuracy,
        "standard_error": error,
        "test_examples": count,
        "scores": None if scores is None else scores_as_json(scores, class_names(files, scores)),
    }


def result_notices(files: RunFiles) -> list[str]:
    """Return a sentence where the model has learned nothing that its accuracy shows."""
    scores = measured_scores(files)
    found = None if scores is None else verdict(scores, class_names(files, scores))
    return [] if found is None else [found]


def result_rows(files: RunFiles) -> Iterator[Comparison]:
    """Compare accuracy and scores: of a measurement with one another, and of the summary with the measurement."""
    scores, accuracy = measured_scores(files), files.measured_accuracy()
    if scores is not None:
        yield Comparison(
            "test accuracy and counts of classes in metrics.jsonl",
            same(scores.accuracy, accuracy),
            {METRICS: f"test accuracy {shown(accuracy)}, and {shown(scores.accuracy)} by its counts"},
        )
    if files.summary is None or files.is_of_an_own_function:
        return
    stated = files.said("test_scores")
    given = None if scores is None else finite(scores_as_json(scores, class_names(files, scores)))
    if stated is not None or given is not None:
        yield Comparison(
            "recall, AUC and classes of the test records in summary.json and in metrics.jsonl",
            same(stated, given),
            {SUMMARY: _short(stated), METRICS: _short(given)},
        )


def measured_scores(files: RunFiles) -> Scores | None:
    """Return the scores that belong to `files.measured_accuracy()`; None where the run kept none.

    Raises InvalidArgumentError where what a measurement keeps cannot be scores.
    """
    row = files.measured()
    kept = None if row is None else row.get("test_scores")
    if kept is None:
        return None
    try:
        return Scores.from_json(kept)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidArgumentError(
            "a line is damaged: its test_scores are none", where=METRICS, cure="Restore the file from a copy"
        ) from error


def class_names(files: RunFiles, scores: Scores) -> list[str]:
    """Return the classes' names by the summary; their numbers where it names others."""
    named = files.said("classes")
    fits = isinstance(named, list) and len(named) == len(scores.count) and all(isinstance(name, str) for name in named)
    return named if fits else [f"class {number}" for number in range(len(scores.count))]


def _short(scores: Any) -> str:
    if not isinstance(scores, Mapping):
        return "nothing"
    return ", ".join(
        f"{name.replace('_', ' ')} {shown(scores.get(name))}"
        for name in ("largest_class_share", "auc", "balanced_accuracy", "only_answer")
    )
