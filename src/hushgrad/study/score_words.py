"""Scores as JSON values and in words: an accuracy never stands without the share of the largest class beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hushgrad.study.scoring import Scores


def scores_as_json(scores: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """Return what a summary says of test examples: shares, and for each class its counts and its recall."""
    rows = zip(classes, scores.count, scores.right, scores.answered, scores.recalls, strict=True)
    return {
        "largest_class": classes[scores.largest_class],
        "largest_class_share": scores.largest_share,
        "auc": scores.auc,
        "balanced_accuracy": scores.balanced_accuracy,
        "only_answer": None if scores.only_answer is None else classes[scores.only_answer],
        "by_class": [
            {"name": name, "count": count, "right": right, "answered": answered, "recall": recall}
            for name, count, right, answered, recall in rows
        ],
    }


def beside_accuracy(scores: Scores, classes: Sequence[str]) -> str:
    """Return the accuracy as one line: beside it the largest class, AUC and balanced accuracy."""
    return (
        f"{scores.accuracy:.2%} (always answering {classes[scores.largest_class]!r}: {scores.largest_share:.2%}), "
        f"AUC {auc_text(scores.auc)}, balanced accuracy {scores.balanced_accuracy:.2%}"
    )


def recall_text(scores: Scores, classes: Sequence[str], most: int = 12) -> str:
    """Return the recall of each class as one line; of many classes, the worst ones."""
    known = [(recall, name) for recall, name in zip(scores.recalls, classes, strict=True) if recall is not None]
    if len(known) <= most:
        return ", ".join(f"{name!r} {recall:.1%}" for recall, name in known)
    lowest = sorted(known)[:most]
    return ", ".join(f"{name!r} {recall:.1%}" for recall, name in lowest) + f" (the lowest of {len(known)} classes)"


def verdict(scores: Scores, classes: Sequence[str]) -> str | None:
    """Return a plain sentence where the model has learned nothing that its accuracy shows; None elsewhere."""
    if scores.only_answer is not None:
        given = f"The model gives one answer, {classes[scores.only_answer]!r}, to all {scores.examples} test records"
        return f"{given}: its accuracy is that class's share, and no record of another class is found"
    if scores.accuracy <= scores.largest_share:
        largest = f"always answering {classes[scores.largest_class]!r} is right for {scores.largest_share:.1%}"
        given = f"The accuracy of {scores.accuracy:.1%} is no better than one answer to all test records: {largest}"
        return f"{given}; balanced accuracy and AUC tell what was learned"
    return None


def auc_text(auc: float | None) -> str:
    """Return the area under the ROC curve with three digits; a dash where there is none."""
    return "–" if auc is None else f"{auc:.3f}"
