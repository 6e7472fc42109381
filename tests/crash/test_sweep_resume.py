"""A sweep that is killed at any point goes on: with a true account of every run, and no finished run is touched."""

import math
from pathlib import Path
from typing import Any

import pytest
from killing_programs import told_by
from sweep_loop import KILLED, POINTS, RUNS
from train_loop import POINTS as OF_A_RUN
from train_loop import STEPS

QUICK = (
    ("after the charge", "sweep and worker"),
    ("between summary and model", "worker"),
    ("before a run takes its place", "sweep"),
)
AT_THE_END = ("between summary and model", "after the model")
EVERY = (
    *((point, "sweep") for point in POINTS),
    *((point, victims) for point in OF_A_RUN for victims in ("sweep", "worker", "sweep and worker")),
)


def found(folder: Path, python: str, point: str, step: int, victims: str) -> dict[str, Any]:
    told, errors = told_by(python, "sweep_loop.py", folder, point, step, victims)
    assert told["again"] == 0, (told, errors, (folder / "said").read_text())
    return told


def require_true_accounts(told: dict[str, Any]) -> None:
    for charged, released in told["at_death"].values():
        assert released <= charged <= released + 1
    assert told["kept"], "a run that was finished was touched again"
    assert told["rows"] == ["completed"] * len(RUNS)
    assert told["contradictions"] == told["left"] == []
    for run in told["runs"].values():
        assert (run["status"], run["steps"], run["planned_steps"]) == ("completed", STEPS, STEPS), run
        assert run["own_charges"] == STEPS + run["lost_steps"], run
        assert run["released"] <= run["charged"], run
        assert run["measured"] == list(range(1, STEPS + 1)), run
    for name in set(RUNS) - {KILLED}:
        run = told["runs"][name]
        assert run["charged"] == run["released"] == STEPS, run
    assert told["largest"] <= told["total"] < math.inf


@pytest.mark.parametrize(
    ("point", "victims"), [pytest.param(*one, marks=() if one in QUICK else pytest.mark.slow) for one in EVERY]
)
def test_a_sweep_killed_at_a_named_point_goes_on_to_its_end(
    point: str, victims: str, tmp_path: Path, forked_python: str
) -> None:
    """Guarantee: charged ≥ released in every run whenever a sweep is killed, and no finished run is trained again."""
    told = found(tmp_path, forked_python, point, STEPS if point in AT_THE_END else 6, victims)
    # A worker that is killed with all of its files written has done its work.
    assert told["status"] == (-9 if "sweep" in victims else 0 if point == "before the checkpoint is removed" else 1)
    require_true_accounts(told)
    if point in OF_A_RUN and victims != "sweep":
        assert told["runs"][KILLED]["lost_steps"] <= 1
    if point in ("before the plan", "after the plan"):
        assert told["finished_at_death"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("victims", ["sweep", "worker", "sweep and worker"])
@pytest.mark.parametrize("point", ["after the charge", "between measurement and checkpoint"])
def test_a_sweep_killed_in_any_step_goes_on_to_its_end(
    point: str, victims: str, step: int, tmp_path: Path, forked_python: str
) -> None:
    require_true_accounts(found(tmp_path, forked_python, point, step, victims))
