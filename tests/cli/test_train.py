import json
import signal
import subprocess
import time

import pytest
import safetensors.torch
from click.testing import CliRunner

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.cli.main import main

QUICK = ["--epochs", "1", "--batch-size", "400"]


def train(*arguments):
    return CliRunner().invoke(main, ["train", *arguments])


def test_a_run_ends_with_the_guarantee_what_it_leaves_out_and_the_files(tmp_path):
    result = train(*QUICK, "--noise-multiplier", "3", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["guarantee"] in result.output
    assert "Outside the guarantee:" in result.output
    for name in ("summary.json", "metrics.jsonl", "curves.png", "model.safetensors", "ledger.jsonl"):
        assert name in result.output
        assert (tmp_path / "out" / name).exists()
    for shown in ("step 4/4", "loss", "train accuracy", "test accuracy", "ε = ", "examples/s"):
        assert shown in result.output


def test_every_epsilon_shown_without_noise_stands_beside_not_private(tmp_path):
    result = train(*QUICK, "--noise-multiplier", "0", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    shown = result.output.replace(str(tmp_path), "")
    lines = [line for line in shown.splitlines() if "ε" in line or "epsilon" in line.lower()]
    assert lines
    assert all("NOT PRIVATE" in line for line in lines)


def test_every_setting_arrives_in_the_summary(tmp_path):
    wanted = {
        "--task": "digits",
        "--classes": "3,8",
        "--model": "mlp",
        "--hidden": "5,4",
        "--activation": "tanh",
        "--epsilon": "2",
        "--delta": "1e-4",
        "--max-grad-norm": "0.5",
        "--clipping": "quantile:quantile=0.7",
        "--sampling": "fixed-size",
        "--noise": "gaussian",
        "--batch-size": "50",
        "--physical-batch-size": "20",
        "--epochs": "2",
        "--optimizer": "adam",
        "--lr": "0.01",
        "--momentum": "0.8",
        "--augmentations": "2",
        "--average": "0.9",
        "--loss-reduction": "sum",
        "--seed": "3",
        "--device": "cpu",
        "--out": str(tmp_path / "out"),
    }
    result = train(*(part for pair in wanted.items() for part in pair))
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    expected = {
        "task": "digits",
        "classes": ["3", "8"],
        "model": "mlp",
        "hidden_sizes": [5, 4],
        "activation": "tanh",
        "target_epsilon": 2.0,
        "delta": 1e-4,
        "max_grad_norm": 0.5,
        "clipping": "quantile:quantile=0.7",
        "sampling_name": "fixed-size",
        "noise": "gaussian",
        "max_batch_size": None,
        "expected_batch_size": 50,
        "max_physical_batch_size": 20,
        "epochs": 2,
        "optimizer": "adam",
        "learning_rate": 0.01,
        "momentum": 0.8,
        "augmentations": 2,
        "average_decay": 0.9,
        "loss_reduction": "sum",
        "seed": 3,
        "device": "cpu",
    }
    assert {name: summary[name] for name in expected} == expected
    assert 1.9 < summary["epsilon"] <= 2.0


def test_a_run_is_repeated_from_the_config_that_it_left_and_what_is_set_wins(tmp_path):
    first = train(*QUICK, "--noise-multiplier", "3", "--hidden", "none", "--out", str(tmp_path / "first"))
    assert first.exit_code == 0, first.output
    config = str(tmp_path / "first" / "config.json")
    second = train(
        *("--config", config, "--set", "seed=5", "--set", "epochs=9", "--epochs", "2"),
        *("--max-epsilon", "9", "--out", str(tmp_path / "second")),
    )
    assert second.exit_code == 0, second.output
    was, now = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    was |= {"seed": 5, "epochs": 2}
    was["privacy"]["max_epsilon"] = 9.0
    assert now == was
    assert now["hidden_sizes"] == []


def test_a_run_beyond_its_budget_is_refused_before_it_starts(tmp_path):
    result = train(*QUICK, "--noise-multiplier", "1", "--max-epsilon", "0.5", "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "DP101 the run would spend ε = " in result.output
    assert "beyond max_epsilon = 0.5. Raise noise_multiplier" in result.output
    assert not (tmp_path / "out").exists()
    both = train("--epsilon", "3", "--max-epsilon", "2", "--out", str(tmp_path / "out"))
    assert "the target ε 3 is beyond the budget max_epsilon = 2" in both.output


def test_the_words_of_earlier_versions_still_work(tmp_path):
    old = "--hidden --physical-batch-size --lr --average --epsilon --delta --batch-size --classes --bounds --drop"
    shown = train("--help").output
    assert all(flag in shown for flag in old.split())


def test_a_csv_file_trains(tmp_path):
    rows = [f"{'red' if n % 2 else 'blue'},{n % 7},{'yes' if n % 2 else 'no'}" for n in range(100)]
    (tmp_path / "data.csv").write_text("\n".join(["colour,size,kind", *rows]))
    result = train(
        *("--task", "csv", "--data", str(tmp_path / "data.csv"), "--target", "kind", "--bounds", "size:0:7"),
        *("--batch-size", "40", "--epochs", "5", "--noise-multiplier", "0.5", "--out", str(tmp_path / "out")),
    )
    assert result.exit_code == 0, result.output
    assert "list of classes was read" in result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["target"], summary["bounds"], summary["classes"]) == ("kind", [["size", 0.0, 7.0]], ["no", "yes"])


def test_tensorboard_shows_every_metric_in_the_group_that_says_whether_epsilon_covers_it(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(*QUICK, "--noise-multiplier", "3", "--tensorboard", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    tested = ("test_accuracy", "test_auc", "test_balanced_accuracy", "test_largest_class")
    covered = {"covered/epoch", "covered/epsilon", "covered/lost_steps", *(f"covered/{name}" for name in tested)}
    not_covered = {"loss", "train_accuracy", "train_largest_class", "examples_per_second", "seconds"}
    assert set(events.Tags()["scalars"]) == covered | {f"not_covered/{name}" for name in not_covered}
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    for tag, name in (("covered/epsilon", "epsilon"), ("not_covered/loss", "loss")):
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        assert shown == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--noise-multiplier -1", "DP101 noise_multiplier: must be >= 0, got -1"),
        ("--noise-multiplier nan", "DP101 noise_multiplier: must be finite"),
        ("--noise-multiplier inf", "DP101 noise_multiplier: must be finite"),
        ("", "DP101 a private run needs --epsilon or --noise-multiplier. Give one: --epsilon 3"),
        ("--noise-multiplier 1 --epsilon 1", "DP101 privacy must have exactly one"),
        ("--epsilon 0", "DP101 target_epsilon: must be > 0"),
        ("--noise-multiplier 1 --max-grad-norm 0", "DP101 max_grad_norm: must be > 0"),
        ("--noise-multiplier 1 --delta 1", "DP101 delta: must be in (0, 1)"),
        ("--noise-multiplier 1 --delta 0.001", "DP101 delta: must be below 1/N"),
        ("--noise-multiplier 1 --batch-size 5000", "DP102 batch_size: must be at most the 1438 training examples"),
        ("--noise-multiplier 1 --batch-size 0", "DP101 batch_size: must be >= 1"),
        ("--noise-multiplier 1 --physical-batch-size 0", "DP101 max_physical_batch_size: must be >= 1"),
        ("--noise-multiplier 1 --epochs 0", "DP101 epochs: must be >= 1"),
        ("--noise-multiplier 1 --lr -1", "DP101 learning_rate: must be > 0"),
        ("--noise-multiplier 1 --momentum 1", "DP101 momentum: must be in [0, 1)"),
        ("--noise-multiplier 1 --seed -1", "DP101 seed: must be >= 0"),
        ("--noise-multiplier 1 --augmentations -1", "DP101 augmentations: must be >= 0"),
        ("--noise-multiplier 1 --average 1", "DP101 average_decay: must be in [0, 1)"),
        (
            "--noise-multiplier 1 --hidden many",
            "DP101 hidden_sizes is written N,N,…, got 'many'. Give whole numbers, such as 64,32, or none",
        ),
        ("--noise-multiplier 1 --device abacus", "DP101 device must be one that is here"),
        ("--noise-multiplier 1 --classes 1,x", "DP104 classes: must be among 0, 1"),
        ("--noise-multiplier 1 --classes 1", "DP101 classes: must name at least 2"),
        ("--noise-multiplier 1 --target y", "DP101 task 'digits': it takes no target"),
        ("--noise-multiplier 1 --task mnist", "DP101 task 'mnist': it needs a folder"),
        (
            "--noise-multiplier 1 --task mnist --data /nowhere",
            "DP104 task 'mnist': its data must be an existing folder, and '/nowhere' is none. Check --data",
        ),
        (
            "--noise-multiplier 1 --task csv --data /nowhere",
            "DP104 task 'csv': its data must be an existing file or folder, and '/nowhere' is none. Check --data",
        ),
        ("--noise-multiplier 1 --task csv --data /dev", "DP101 task 'csv': it needs the column to predict"),
        ("--epsilon 1 --noise buffered", "DP101 noise: buffered noise is for batches that come in one order"),
        ("--noise-multiplier 1 --noise banded", "DP101 noise: banded noise is chosen for a number of steps and a"),
        (
            "--noise-multiplier 1 --sampling fixed-size --max-batch-size 9",
            "DP101 max_batch_size: cuts Poisson draws, and the sampling is fixed-size",
        ),
        ("--epsilon 1 --noise grid --clipping quantile", "DP504 it is not known"),
        ("--set epoch=3", "DP101 --set: there is no setting 'epoch'. Write epochs"),
        ("--config /nowhere.toml", "DP101 /nowhere.toml: the file of settings cannot be read"),
        ("--noise-multiplier 1 --bounds age", "DP101 bounds is written COLUMN:LOW:HIGH"),
    ],
)
def test_bad_input_is_one_line_with_a_code_and_leaves_no_folder(tmp_path, arguments, said):
    result = train(*arguments.split(), "--out", str(tmp_path / "out"))
    assert result.exit_code == 1, result.output
    assert said in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.glob("out/*"))


def test_a_used_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    result = train("--noise-multiplier", "1", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "new or empty" in result.output


def test_ctrl_c_leaves_all_files_valid_and_in_agreement(tmp_path, forked_python):
    out = tmp_path / "out"
    command = [forked_python, "-m", "hushgrad.cli.main", "train", "--noise-multiplier", "4"]
    process = subprocess.Popen(
        [*command, "--epochs", "199", "--batch-size", "16", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "model.safetensors").exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert "Interrupted after" in output
    summary = json.loads((out / "summary.json").read_text())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    events = read_ledger(out / "ledger.jsonl").events
    assert summary["status"] == "interrupted"
    assert summary["steps"] == rows[-1]["step"] == sum(count for _, count in events) > 0
    assert summary["epsilon"] == rows[-1]["epsilon"] == epsilon(events, summary["delta"])
    assert safetensors.torch.load_file(out / "model.safetensors")
    assert (out / "curves.png").read_bytes().endswith(b"IEND\xaeB`\x82")
