"""The summary of a run as it lies in the run's folder, and whether the run has written all that it ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hushgrad.errors import InvalidArgumentError
from hushgrad.study.directory import RunDirectory, from_json
from hushgrad.study.model_file import read_model


def is_completed(directory: RunDirectory) -> bool:
    """Is there nothing left to do: the last step taken, and all files of the end written?"""
    summary = read_summary(directory.path)
    if summary is None or summary.get("status") != "completed" or not directory.curves.exists():
        return False
    model = read_model(directory.model)
    return model is not None and model.digest == summary.get("model_digest")


def read_summary(run_folder: Path) -> dict[str, Any] | None:
    """Return the summary of a run's folder, None where there is none yet. Raises InvalidArgumentError if damaged."""
    try:
        value = from_json((run_folder / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise damaged_summary("it is not JSON that can be read") from error
    if not isinstance(value, dict):
        raise damaged_summary("it is not a JSON object")
    return value


def damaged_summary(what: str) -> InvalidArgumentError:
    """Return the error for a run's summary that is not as it was written."""
    return InvalidArgumentError(
        f"the file is damaged: {what}", where="summary.json", cure="Restore it from a copy, or run anew"
    )
