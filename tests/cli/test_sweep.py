import json

import pytest
from click.testing import CliRunner

from hushgrad.cli.main import main

pytestmark = pytest.mark.usefixtures("forked_programs")


def sweep(*arguments):
    return CliRunner().invoke(main, ["sweep", *arguments])


def test_a_sweep_of_digits_leaves_runs_table_and_pictures_and_starts_nothing_twice(tmp_path):
    words = ("--noise-multipliers", "4", "--seeds", "1", "--epochs", "1", "--batch-sizes", "400", "--cores", "1")
    result = sweep(*words, "--no-baseline", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "digits, B=400" in result.output
    assert "Each ε is its run's alone" in result.output
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [run["status"] for run in table["runs"]] == ["completed"]
    for name in ("accuracy.png", "accuracy.svg", "curves-1.png", "curves-1.svg", "table.csv"):
        assert (tmp_path / "out" / name).stat().st_size
    again = sweep(*words, "--no-baseline", "--out", str(tmp_path / "out"))
    assert again.exit_code == 0
    assert "1 of 1 runs were finished before" in again.output
    other = sweep(*words, "--out", str(tmp_path / "out"))
    assert other.exit_code == 1
    assert "DP404 --out: this folder holds a sweep with another plan" in other.output
    reported = CliRunner().invoke(main, ["report", str(tmp_path / "out")])
    assert reported.exit_code == 0, reported.output
    assert CliRunner().invoke(main, ["report", "--check", str(tmp_path / "out")]).exit_code == 0
    told = (tmp_path / "out" / "report.json").read_text()
    assert "are computed on them without noise" in told
    assert "settings chosen after looking at the results of other runs" in told


def test_a_sweep_with_a_failing_run_says_so_and_exits_with_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_sweep.py").write_text("def f(trial):\n    raise RuntimeError('x')\n")
    result = sweep(
        "--function", "own_sweep:f", "--noise-multipliers", "1", "--seeds", "1", "--no-baseline", "--out", "o"
    )
    assert result.exit_code == 1
    assert result.output.count("FAILED") == 1
    assert "1 of 1 runs failed" in result.output
    assert "accuracy.png" not in result.output
    assert "hushgrad report" not in result.output
    reported = CliRunner().invoke(main, ["report", "o"])
    assert reported.exit_code == 1
    assert "No run was completed" in reported.stderr
    assert "1 of 1 runs failed" in reported.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("mnist", "--epochs", "3"), 2, "--epochs cannot be combined with a sweep file"),
        (("absent",), 1, "DP101 sweep 'absent': it is neither a file nor one of mnist, tasks"),
        (("--noise-multipliers", "1,x"), 1, "DP101 noise_multipliers is written N,N,…, got '1,x'. Give numbers"),
        (("--noise-multipliers", "1", "--epsilons", "1"), 1, "and not both"),
        (("--function", "m:f", "--task", "digits"), 2, "--function goes without --task"),
        (("--cores", "1", "--threads-per-run", "2"), 1, "DP101 cores: must be >= 2"),
        (("--storage", "sqlite:///x"), 2, "--storage goes with --search"),
        (("--search", "2"), 2, "--search goes with one task"),
        (("--search", "2", "--noise-multipliers", "1"), 1, "target_epsilon: a search compares settings"),
        (("--function", "m:f", "--epochs", "2"), 1, "DP101 [settings]: a function takes no epochs"),
        (("--noise-multipliers", "1", "--spare-steps", "2"), 1, "DP101 spare_steps: spare_steps go with a target"),
        (("--epsilons", "1", "--spare-steps", "-1"), 1, "DP101 spare_steps: must be >= 0"),
        (("--seeds", "0"), 1, "DP101 seeds: must be >= 1"),
    ],
)
def test_bad_input_is_said_before_anything_runs(tmp_path, words, status, said):
    result = sweep(*words, "--out", str(tmp_path / "out"))
    assert result.exit_code == status, result.output
    assert said in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "out" / "runs").exists() or not list((tmp_path / "out" / "runs").iterdir())


@pytest.mark.parametrize(
    "words", ["mnist", "--task mnist --epsilons 1 --no-baseline --seeds 1 --search 2"], ids=["sweep", "search"]
)
def test_data_that_are_missing_are_refused_once_before_a_run_is_started(tmp_path, words):
    missing, out = tmp_path / "data", tmp_path / "out"
    result = sweep(*words.split(), "--data", str(missing), "--out", str(out))
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"Error: DP104 task 'mnist': its data must be an existing folder, and '{missing}' is none. Check --data"
    ]
    assert not out.exists()


def test_a_finished_sweep_needs_its_data_no_more(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("x,y\n" + "0.1,a\n0.9,b\n" * 40)
    words = ("--task", "csv", "--target", "y", "--data", str(path), "--noise-multipliers", "4", "--no-baseline")
    words = (*words, "--seeds", "1", "--epochs", "1", "--batch-sizes", "20", "--out", str(tmp_path / "out"))
    first = sweep(*words)
    assert first.exit_code == 0, first.output
    path.unlink()
    assert sweep(*words).exit_code == 0


def test_a_folder_without_a_plan_is_not_resumed_and_the_cure_says_what_goes_on(tmp_path):
    (tmp_path / "search.journal").touch()
    result = sweep("--resume", str(tmp_path))
    assert result.exit_code == 1
    assert "a search, go on by the words that began them" in " ".join(result.output.split())


def test_a_sweep_that_was_killed_before_its_plan_was_whole_begins_by_the_same_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    (out / ".plan.json.new").write_text("{")
    (tmp_path / "own_sweep.py").write_text("def f(trial):\n    return {'test_accuracy': 0.5}\n")
    words = ("--function", "own_sweep:f", "--noise-multipliers", "0", "--seeds", "1", "--out", str(out))
    sweep(*words)
    assert (out / "plan.json").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "something.txt").touch()
    refused = sweep(*words[:-1], str(tmp_path / "other"))
    assert "new, empty, or hold this sweep" in " ".join(refused.output.split())


def test_the_help_names_the_shipped_sweeps():
    assert "mnist, tasks" in " ".join(sweep("--help").output.split())
