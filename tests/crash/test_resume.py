"""A loop with checkpoints that is killed at any point goes on to its planned end, and has charged what it released."""

import sys
from pathlib import Path

import pytest
from killing_programs import told_by
from resume_loop import EVERY, OF_CHECKPOINTS, POINTS, STEPS

LAST = STEPS - 1


def found(folder: Path, python: str, point: str, step: int) -> dict[str, int]:
    folder.mkdir()
    told, errors = told_by(python, "resume_loop.py", folder, point, step)
    assert told["killed"], told
    assert told["finished"], errors
    return told


def require_true_account(told: dict[str, int]) -> None:
    assert told["released_at_death"] <= told["charged_at_death"] <= told["released_at_death"] + 1
    assert told["done"] == STEPS
    assert told["released"] <= told["charged"]
    assert told["charged"] == STEPS + told["lost"]
    assert told["lost"] <= EVERY


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_at_a_named_point_goes_on_to_its_end_with_a_true_account(
    point: str, tmp_path: Path, forked_python: str
) -> None:
    """Guarantee: charged ≥ released whenever the process is killed, and the steps that were lost are told."""
    require_true_account(found(tmp_path / "run", forked_python, point, 5))


@pytest.mark.slow
@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("point", [point for point in POINTS if point not in OF_CHECKPOINTS])
def test_a_run_killed_in_any_step_goes_on_to_its_end_with_a_true_account(
    point: str, step: int, tmp_path: Path, forked_python: str
) -> None:
    require_true_account(found(tmp_path / "run", forked_python, point, step))


def found_in(loop: str, folder: Path, pairs: list[str]) -> dict[str, dict[str, int]]:
    pytest.importorskip(loop.partition("_")[0])
    found, errors = told_by(sys.executable, loop, folder, *pairs, timeout=600)
    told = dict(zip(pairs, found, strict=True))
    assert all(one["killed"] and one["finished"] for one in told.values()), (told, errors)
    return told


def test_a_run_of_lightning_killed_at_a_named_point_goes_on_to_its_end_with_a_true_account(tmp_path: Path) -> None:
    """Guarantee: charged ≥ released whenever the process is killed, and the steps that were lost are told."""
    points = ("after the charge", "after the batch", "before the checkpoint is written")
    for told in found_in("lightning_loop.py", tmp_path, [f"{point}:5" for point in points]).values():
        require_true_account(told)


@pytest.mark.slow
@pytest.mark.parametrize("point", [*(one for one in POINTS if one not in OF_CHECKPOINTS), "after the batch"])
def test_a_run_of_lightning_killed_in_any_step_goes_on_to_its_end_with_a_true_account(
    point: str, tmp_path: Path
) -> None:
    # Lightning's forward runs within the optimizer's step: the point before that is the one of the next step.
    steps = range(STEPS - 1) if point == "before the optimizer's update" else range(STEPS)
    for told in found_in("lightning_loop.py", tmp_path, [f"{point}:{step}" for step in steps]).values():
        require_true_account(told)


def test_a_loop_of_accelerate_killed_at_a_named_point_goes_on_to_its_end_with_a_true_account(tmp_path: Path) -> None:
    """Guarantee: charged ≥ released whenever the process is killed, and the steps that were lost are told."""
    pairs = ["after the charge:0", "before the checkpoint is written:5", "after the checkpoint:5"]
    for told in found_in("accelerate_loop.py", tmp_path, pairs).values():
        require_true_account(told)


@pytest.mark.slow
@pytest.mark.parametrize("point", [one for one in POINTS if one not in OF_CHECKPOINTS])
def test_a_loop_of_accelerate_killed_in_any_step_goes_on_to_its_end_with_a_true_account(
    point: str, tmp_path: Path
) -> None:
    pairs = [f"{point}:{step}" for step in range(STEPS)]
    for told in found_in("accelerate_loop.py", tmp_path, pairs).values():
        require_true_account(told)
