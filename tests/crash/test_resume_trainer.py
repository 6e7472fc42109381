"""A Trainer that is killed at any point goes on to its planned end, and has charged what it released."""

import sys
from pathlib import Path

import pytest
from killing_programs import told_by
from resume_loop import EVERY, STEPS

pytest.importorskip("transformers")
NAMED = (
    *("before the backward", "after the backward", "before the charge", "after the charge"),
    *("before the noise", "after the noise", "before the optimizer's update", "after the optimizer's update"),
    *("before the checkpoint is written", "before the checkpoint's receipt", "after the checkpoint's receipt"),
    "while a checkpoint is loaded",
)
OF_A_STEP = NAMED[:8]


def require_true_accounts(folder: Path, kind: str, steps: int, step: int, points: tuple[str, ...]) -> None:
    """Guarantee: charged ≥ released whenever the process is killed, and the steps that were lost are told."""
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    found, errors = told_by(
        sys.executable, "resume_trainer.py", folder, kind, steps, step, *points, timeout=900, **offline
    )
    assert len(found) == len(points)
    for point, told in zip(points, found, strict=True):
        assert told["killed"], (point, told)
        assert told["finished"], (point, errors)
        assert told["released_at_death"] <= told["charged_at_death"] <= told["released_at_death"] + 1, (point, told)
        assert told["released"] <= told["charged"] == steps + told["lost"], (point, told)
        assert told["done"] == steps, (point, told)
        assert told["lost"] <= 2 * EVERY, (point, told)


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("trainer", (NAMED[3], NAMED[4], NAMED[9])),
        *(pytest.param("trainer", NAMED[place : place + 3], marks=pytest.mark.slow) for place in range(0, 12, 3)),
        pytest.param("sft", ("after the noise", "before the checkpoint's receipt"), marks=pytest.mark.slow),
    ],
)
def test_a_trainer_killed_at_a_named_point_goes_on_to_its_end_with_a_true_account(
    kind: str, points: tuple[str, ...], tmp_path: Path
) -> None:
    require_true_accounts(tmp_path, kind, 4, 3, points)


@pytest.mark.slow
@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("kind", ["trainer", "sft"])
def test_a_trainer_killed_in_any_step_goes_on_to_its_end_with_a_true_account(
    kind: str, step: int, tmp_path: Path
) -> None:
    require_true_accounts(tmp_path, kind, STEPS, step, OF_A_STEP)
