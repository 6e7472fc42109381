"""The command runs from end to end, in processes of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.command import command_line
from benchmarks.contestants import CONTESTANTS
from benchmarks.eligibility import failure, update
from benchmarks.memory import is_supported, peak_in_own_process
from benchmarks.runner import Contestant
from benchmarks.workloads import SMALL

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_measures_the_contestants_asked_for_and_writes_json(tmp_path):
    path = tmp_path / "found.json"
    arguments = "--workload cnn --contestant ordinary --pairs 6 --warm-up 1 --threads 1 --no-memory --json"
    command = [sys.executable, "-m", "benchmarks", *arguments.split(), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert list(found["workloads"]["cnn"]["contestants"]) == ["ordinary", "hushgrad"]
    assert found["allocator"] == "steady"
    assert found["machine"]["threads"] == 1
    assert str(path) not in found["command"]
    assert "hushgrad session" in done.stdout


@pytest.mark.skipif(not is_supported(), reason="needs Linux' resettable high-water mark")
def test_the_peak_of_a_step_holds_at_least_the_activations_of_its_batch(monkeypatch):
    monkeypatch.chdir(ROOT)
    # The cnn's first layer puts out 256 x 16 x 14 x 14 values of 4 bytes, and the ReLU after it as many.
    peak = peak_in_own_process("cnn", "hushgrad", 1)
    assert peak.first_step > 2 * 256 * 16 * 14 * 14 * 4
    assert peak.later_steps > 2 * 256 * 16 * 14 * 14 * 4


def test_a_failing_child_is_an_error_and_not_a_missing_figure(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(RuntimeError, match="nobody"):
        peak_in_own_process("cnn", "nobody", 1)


def test_the_command_that_is_reported_names_no_file():
    assert command_line("benchmarks", ["--json", "/a/b.json", "--pairs", "9"]) == "python -m benchmarks --pairs 9"
    assert command_line("benchmarks", ["--json=/a/b.json", "--noise"]) == "python -m benchmarks --noise"
    assert command_line("benchmarks", ["--growth", "/a/b.png"]) == "python -m benchmarks --growth FILE"
    assert command_line("benchmarks", ["--fastdp=/a", "--noise"]) == "python -m benchmarks --fastdp FOLDER --noise"


def test_a_peer_that_cannot_train_a_workload_is_named_with_its_error_and_hushgrad_has_no_way_out(monkeypatch):
    def broken(workload, noise_multiplier):
        raise NotImplementedError("no rule for this layer\nmore of the same")

    expected = update(SMALL["mlp"], "hushgrad")
    for name in ("torch-func", "hushgrad"):
        monkeypatch.setitem(CONTESTANTS, name, Contestant(name, broken))
    assert failure(SMALL["mlp"], "torch-func", expected) == "NotImplementedError: no rule for this layer"
    assert failure(SMALL["mlp"], "hushgrad", expected) is None
