"""`hushgrad train` that is killed at any point goes on in its folder to its planned end, with a true account."""

from pathlib import Path
from typing import Any

import pytest
from killing_programs import told_by
from train_loop import POINTS, STEPS

QUICK = (
    "before the first checkpoint",
    "after the charge",
    "between measurement and checkpoint",
    "before a file takes its place",
    "between summary and model",
    "before the checkpoint is removed",
)
FILES = [
    *("config.json", "curves.png", "encoding.json", "ledger.jsonl", "metrics.jsonl", "model.safetensors"),
    *("provenance.json", "summary.json"),
]


def found(folder: Path, python: str, point: str, step: int) -> dict[str, Any]:
    told, errors = told_by(python, "train_loop.py", folder, point, step)
    assert told["killed"], told
    assert told["finished"], errors
    return told


def require_whole(told: dict[str, Any]) -> None:
    assert told["released_at_death"] <= told["charged_at_death"] <= told["released_at_death"] + 1
    assert told["released"] <= told["charged"] == told["steps"] + told["lost_steps"]
    assert (told["status"], told["steps"], told["planned_steps"]) == ("completed", STEPS, STEPS)
    assert told["measured"] == list(range(1, STEPS + 1))
    assert told["contradictions"] == []
    assert told["files"] == FILES


@pytest.mark.parametrize(
    "point", [pytest.param(point, marks=() if point in QUICK else pytest.mark.slow) for point in POINTS]
)
def test_a_run_of_the_command_line_killed_at_a_named_point_goes_on_to_its_end(
    point: str, tmp_path: Path, forked_python: str
) -> None:
    """Guarantee: charged ≥ released whenever hushgrad train is killed, and its files agree once it has gone on."""
    require_whole(found(tmp_path, forked_python, point, 6))


@pytest.mark.slow
@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("point", ["after the charge", "after the update", "between measurement and checkpoint"])
def test_a_run_of_the_command_line_killed_in_any_step_goes_on_to_its_end(
    point: str, step: int, tmp_path: Path, forked_python: str
) -> None:
    require_whole(found(tmp_path, forked_python, point, step))
