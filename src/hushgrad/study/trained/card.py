"""The model card beside an exported model: what it takes and gives, what it was measured on, and its guarantee."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hushgrad.extras import needs_extra
from hushgrad.study.report.document import percent, plain
from hushgrad.study.report.run_document import run_document
from hushgrad.study.report.run_facts import run_facts
from hushgrad.study.score_words import auc_text

CARD = "MODEL_CARD.md"

_INPUTS = {
    "csv": "rows of a table, encoded by a fixed rule (encoding.json)",
    "text": "sentences as word numbers (encoding.json)",
    "mnist": "images of one channel, pixels from 0 to 1",
    "digits": "images of one channel, pixels from 0 to 1",
    "images": "pictures of three channels, pixels from 0 to 1",
}


def model_card(run: Path, file: str) -> str:
    """Return the card of the model in `file` that the run in a folder has trained, in Markdown.

    Every figure is computed from the run's files, as `hushgrad report` computes it; no value of a record is in it.
    """
    with needs_extra("report", "a model card"):
        from hushgrad.study.report.render import escaped, markdown
    facts = run_facts(run)
    lines = [
        f"# {escaped(facts['name'])}",
        "",
        f"{escaped(file)}: a model trained by hushgrad {escaped(plain(facts['versions'].get('hushgrad')))}.",
        "",
        "## Model, data and measurements",
        "",
        *(f"- {escaped(name)}: {escaped(value)}" for name, value in _described(facts)),
        "",
        "A class is that of the largest logit; the logits' softmax was not calibrated. Accuracy was measured on the "
        "test records alone, without noise; it says nothing of other populations.",
        "",
        "",
    ]
    return "\n".join(lines) + markdown(run_document(facts))


def _of_which(facts: dict[str, Any]) -> str:
    """Say how many parameters were trained, where others came with a base model."""
    trained = facts["settings"].get("trained_parameters")
    return "" if trained in (None, facts["parameters"]) else f", of which {plain(trained)} were trained"


def _described(facts: dict[str, Any]) -> list[tuple[str, str]]:
    settings, result = facts["settings"], facts["result"]
    error = result["standard_error"]
    measured = percent(result["test_accuracy"]) + (f" (standard error {100 * error:.2g} points)" if error else "")
    scores = result["scores"]
    if scores is not None:
        measured += (
            f"; always answering {scores['largest_class']!r} {percent(scores['largest_class_share'])}; AUC "
            f"{auc_text(scores['auc'])}; balanced accuracy {percent(scores['balanced_accuracy'])};"
        )
    return [
        ("model", f"{plain(settings['model'])}, {plain(facts['parameters'])} parameters{_of_which(facts)}"),
        ("inputs", _INPUTS.get(str(settings["task"]), plain(settings["description"]))),
        ("outputs", f"logits of {len(settings['classes'])} classes: {plain(settings['classes'])}"),
        ("trained on", f"{plain(settings['description'])}: {plain(settings['training_examples'])} training records"),
        ("test accuracy", f"{measured} on {plain(result['test_examples'])} test records of the same source"),
        ("privacy of the training records", facts["privacy"]["statement"] or "NOT PRIVATE: ordinary training"),
    ]
