"""Every example runs as a newcomer would run it, and prints a guarantee that holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_every_example_is_run_by_a_test() -> None:
    source = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.name}"' in source, example.name


@pytest.mark.packages
def test_a_small_bert_is_fine_tuned(tmp_path: Path) -> None:
    done = run("trainer_bert.py", "--out", str(tmp_path), "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert "differential privacy" in done.stdout
    assert "after 10 steps" in done.stdout


@pytest.mark.packages
def test_a_loop_of_accelerate_is_private(tmp_path: Path) -> None:
    done = run("accelerate_loop.py", "--epochs", "2", "--ledger", str(tmp_path / "ledger"))
    assert done.returncode == 0, done.stderr
    assert "after 12 steps" in done.stdout


def test_a_run_that_was_stopped_goes_on_to_its_end(tmp_path: Path) -> None:
    assert run("resume_after_kill.py", "--out", str(tmp_path), "--stop-after", "7").returncode == 1
    done = run("resume_after_kill.py", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "going on after step 5; 2 steps after it were lost and stay charged" in done.stdout
    assert "after 62 steps" in done.stdout


@pytest.mark.packages
def test_a_model_of_a_table_is_used_on_new_rows_and_exported(tmp_path: Path) -> None:
    done = run("predict_adult.py", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Astronaut: " in done.stdout
    assert "after 32 steps" in done.stdout
    assert (tmp_path / "exported" / "MODEL_CARD.md").exists()
