"""Every example runs as a newcomer would run it, and prints a guarantee that holds.

Most run in forks that have imported torch; a loop of one's own in a new Python, too.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("forked_programs")

EXAMPLES = Path(__file__).parents[2] / "examples"
NEW = sys.executable


def run(name: str, *arguments: str, python: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python or sys.executable, str(EXAMPLES / name), *arguments],
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


@pytest.mark.slow
@pytest.mark.packages
def test_a_small_bert_is_fine_tuned_on_real_sentences(tmp_path: Path, data_folder: Path) -> None:
    lines = gzip.decompress((data_folder / "sst2" / "dev.tsv.gz").read_bytes()).decode().splitlines()[:601]
    (tmp_path / "some.tsv").write_text("\n".join(["label\tsentence", *lines[1:]]) + "\n")
    done = run("trainer_bert.py", "--data", str(tmp_path / "some.tsv"), "--out", str(tmp_path / "out"), "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert "differential privacy" in done.stdout


@pytest.mark.packages
def test_adapters_of_a_language_model_are_fine_tuned(tmp_path: Path) -> None:
    done = run("sft_lora.py", "--out", str(tmp_path), "--steps", "4")
    assert done.returncode == 0, done.stderr
    assert "after 4 steps" in done.stdout
    assert (tmp_path / "adapter_model.safetensors").is_file()


@pytest.mark.packages
def test_a_loop_of_accelerate_is_private(tmp_path: Path) -> None:
    done = run("accelerate_loop.py", "--epochs", "2", "--ledger", str(tmp_path / "ledger"))
    assert done.returncode == 0, done.stderr
    assert "after 12 steps" in done.stdout


@pytest.mark.packages
def test_an_image_classifier_of_lightning_is_private(tmp_path: Path) -> None:
    done = run("lightning_images.py", "--epochs", "2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "differential privacy" in done.stdout
    assert "after 12 steps" in done.stdout


def test_a_convolutional_network_learns_images(tmp_path: Path) -> None:
    done = run("images.py", "--out", str(tmp_path), "--epochs", "5")
    assert done.returncode == 0, done.stderr
    assert "after 30 steps" in done.stdout
    right = re.search(r"accuracy on held-out digits: ([\d.]+)%", done.stdout)
    assert right is not None
    assert float(right[1]) > 40  # of ten classes; about 75
    assert (tmp_path / "model.pt").exists()


def test_a_loop_of_ones_own_takes_its_planned_steps(tmp_path: Path) -> None:
    done = run("own_loop.py", "--out", str(tmp_path), python=NEW)
    assert done.returncode == 0, done.stderr
    assert "epoch 8: ε = 3.00, 0 steps left" in done.stdout
    assert "after 160 steps" in done.stdout
    error = re.search(r"mean squared error ([\d.]+)", done.stdout)
    assert error is not None
    assert float(error[1]) < 0.1  # about 0.013, of which 0.01 is the targets' own noise


def test_made_up_patients_are_a_table(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(EXAMPLES / "people.py")], cwd=tmp_path, check=True)
    assert done.returncode == 0
    lines = (tmp_path / "people.csv").read_text().splitlines()
    assert lines[0] == "age,ward,visits,returned"
    assert len(lines) == 4_001


def test_a_run_that_was_stopped_goes_on_to_its_end(tmp_path: Path) -> None:
    assert run("resume_after_kill.py", "--out", str(tmp_path), "--stop-after", "7").returncode == 1
    done = run("resume_after_kill.py", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "going on after step 5; 2 steps after it were lost and stay charged" in done.stdout
    assert "after 62 steps" in done.stdout


@pytest.mark.parametrize(
    ("script", "processes", "steps"),
    [("several_processes.py", 1, 48), ("several_processes.py", 2, 48), ("sharded_model.py", 2, 36)],
)
def test_one_model_is_trained_in_several_processes(script: str, processes: int, steps: int, tmp_path: Path) -> None:
    launch = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    done = subprocess.run(
        [sys.executable, *launch, str(EXAMPLES / script), "--out", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"after {steps} steps" in done.stdout
    assert "of the test images" in done.stdout


@pytest.mark.packages
def test_a_run_of_opacus_goes_on_with_one_epsilon_over_both_parts(tmp_path: Path) -> None:
    done = run("continue_from_opacus.py", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "(4, 0.0001)-differential privacy" in done.stdout or "(3.99" in done.stdout
    assert "after 42 steps" in done.stdout
    assert "NOT VOUCHED FOR" in done.stdout


@pytest.mark.packages
def test_a_model_of_a_table_is_used_on_new_rows_and_exported(tmp_path: Path) -> None:
    done = run("predict_adult.py", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Astronaut: " in done.stdout
    assert "after 32 steps" in done.stdout
    assert (tmp_path / "exported" / "MODEL_CARD.md").exists()
