"""Does the model that a run saved say what the summary says?"""

from __future__ import annotations

from collections.abc import Iterator

from hushgrad.study.report.comparison import Comparison
from hushgrad.study.report.document import plain
from hushgrad.study.report.run_files import MODEL, SUMMARY, RunFiles
from hushgrad.study.report.statements import claimed
from hushgrad.study.report.values import same


def model_rows(files: RunFiles) -> Iterator[Comparison]:
    """Compare the model that was saved with the summary."""
    if files.model is None or files.summary is None:
        return
    counted, model_steps, steps = files.said("parameters"), steps_of_model(files), files.said("steps")
    if counted is not None:
        yield Comparison(
            "parameters in summary.json and in the model",
            same(counted, files.model.parameters),
            {SUMMARY: plain(counted), MODEL: plain(files.model.parameters)},
        )
    digest = files.said("model_digest")
    if model_steps is None and digest is not None:
        yield Comparison(
            "the words in the header of the model",
            False,
            {SUMMARY: f"a model of {plain(steps)} steps", MODEL: "nothing of its steps"},
        )
    if digest is not None and model_steps in (None, steps):
        yield Comparison(
            "the values in summary.json and in the model",
            digest == files.model.digest,
            {SUMMARY: f"digest {str(digest)[:12]}…", MODEL: f"digest {files.model.digest[:12]}…"},
        )
    if model_steps is None or not isinstance(steps, int):
        return
    yield Comparison(
        "steps in summary.json and in the model",
        model_steps <= steps,
        {SUMMARY: plain(steps), MODEL: plain(model_steps)},
    )
    if model_steps == steps:
        words, stated = files.model.words.get("guarantee"), files.said("guarantee")
        told = {file: claimed(text) for file, text in ((SUMMARY, stated), (MODEL, words))}
        yield Comparison("the statement in summary.json and in the model", words == stated, told)


def steps_of_model(files: RunFiles) -> int | None:
    """Return how many steps the saved model has taken, as its header says; None where it does not say so."""
    steps = None if files.model is None else files.model.words.get("steps", "")
    return int(steps) if steps and steps.isascii() and steps.isdecimal() and len(steps) < 16 else None
