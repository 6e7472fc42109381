import json
import sys
from dataclasses import replace

import pytest
import safetensors

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import DatasetError, InvalidArgumentError, MissingExtraError, TaskDataError
from hushgrad.study.config_json import config_from_json
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.directory import RunDirectory
from hushgrad.study.report.run_facts import run_facts
from hushgrad.study.run import run
from hushgrad.study.tasks import TaskOptions


def config(noise_multiplier=3.0, **changes):
    privacy = None if noise_multiplier is None else Privacy(noise_multiplier=noise_multiplier, max_grad_norm=1.0)
    return replace(suggested_run("digits", privacy=privacy), **{"batch_size": 400, "epochs": 2, **changes})


def strict(text):
    return json.loads(text, parse_constant=pytest.fail)


def test_a_run_leaves_eight_valid_files_that_agree(tmp_path):
    finished = run(config(), tmp_path / "out")
    directory = finished.directory
    assert sorted(path.name for path in directory.path.iterdir()) == [
        "config.json",
        "curves.png",
        "encoding.json",
        "ledger.jsonl",
        "metrics.jsonl",
        "model.safetensors",
        "provenance.json",
        "summary.json",
    ]
    assert config_from_json(strict(directory.config.read_text())) == config()
    summary = strict(directory.summary.read_text())
    rows = [strict(line) for line in directory.metrics.read_text().splitlines()]
    ledger = read_ledger(directory.ledger)
    assert summary["epsilon"] == rows[-1]["epsilon"] == epsilon(ledger.events, 1e-5)
    assert summary["steps"] == rows[-1]["step"] == sum(count for _, count in ledger.events) == 8
    assert summary["test_accuracy"] == rows[-1]["test_accuracy"]
    assert summary["status"] == "completed"
    assert summary["guarantee"] == str(finished.outcome.spent.guarantee)
    assert directory.curves.read_bytes().startswith(b"\x89PNG")
    with safetensors.safe_open(directory.model, "pt") as file:
        assert file.metadata()["guarantee"] == summary["guarantee"]
    shown = finished._repr_html_()
    assert summary["guarantee"] in shown
    assert f"{summary['test_accuracy']:.2%}" in shown
    assert str(directory.path) in shown


def test_the_summary_says_what_the_guarantee_rests_on(tmp_path):
    summary = run(config(), tmp_path).summary
    assert summary["delta"] == 1e-5
    assert summary["noise_multiplier"] == 3.0
    assert summary["max_grad_norm"] == 1.0
    assert summary["sampling_rate"] == pytest.approx(400 / 1438)
    assert "add/remove" in summary["adjacency"]
    assert any("training loss" in item for item in summary["outside_the_guarantee"])


def wrong(directory):
    return [row["what"] for row in run_facts(directory.path)["agreement"] if not row["held"]]


def test_a_run_with_noise_on_a_grid_says_so_in_its_files(tmp_path):
    """Beside epsilon, in the summary, the ledger and the report."""
    on_grid = replace(config(epochs=1), privacy=Privacy(noise_multiplier=3.0, max_grad_norm=1.0, noise="grid"))
    finished = run(on_grid, tmp_path / "out")
    rounding = read_ledger(finished.directory.ledger).contract.rounding
    assert rounding is not None
    assert "1e-05 + " in finished.summary["guarantee"]
    assert "Sums were rounded to a grid" in finished.summary["guarantee"]
    facts = run_facts(finished.directory.path)
    assert facts["privacy"]["rounding"]["grid"] == rounding.grid
    assert wrong(finished.directory) == []
    summary = strict(finished.directory.summary.read_text())
    for changed in (
        summary["guarantee"].replace("1e-05 + ", "1e-05 + 1"),
        summary["guarantee"].replace("1e-05 + ", ""),
    ):
        finished.directory.summary.write_text(json.dumps({**summary, "guarantee": changed}))
        assert wrong(finished.directory) != []
    assert config_from_json(strict(finished.directory.config.read_text())) == on_grid


def test_without_noise_the_files_say_not_private(tmp_path):
    summary = strict((run(config(0.0), tmp_path).directory.summary).read_text())
    assert summary["epsilon"] == "inf"
    assert summary["private"] is False
    assert "NOT PRIVATE" in summary["guarantee"]


def test_an_ordinary_run_says_not_private_and_has_no_ledger(tmp_path):
    finished = run(config(None), tmp_path)
    summary = strict(finished.directory.summary.read_text())
    assert summary["epsilon"] == "inf"
    assert summary["guarantee"].startswith("NOT PRIVATE")
    assert not finished.directory.ledger.exists()


def test_the_summary_is_written_before_the_model(tmp_path, monkeypatch):
    """Guarantee: the epsilon in summary.json is never below what the model beside it has cost."""

    def crash(self, model, description):
        raise OSError("power cut")

    monkeypatch.setattr(RunDirectory, "write_model", crash)
    with pytest.raises(OSError, match="power cut"):
        run(config(), tmp_path)
    summary = strict((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("running", 4)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_used_folder_is_refused_before_data_is_read(tmp_path):
    (tmp_path / "file").touch()
    options = TaskOptions(data=tmp_path / "absent")
    with pytest.raises(InvalidArgumentError, match="new or empty"):
        run(replace(config(), task="mnist", options=options), tmp_path)


def test_a_missing_library_is_found_before_the_run_and_not_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    cure = r"Run: pip install 'hushgrad\[study\]'"
    with pytest.raises(
        MissingExtraError, match=f"DP105 a training run needs matplotlib, which is not installed. {cure}"
    ):
        run(config(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path):
    with pytest.raises(DatasetError):
        run(config(batch_size=5000), tmp_path / "out")
    with pytest.raises(TaskDataError):
        run(config(options=TaskOptions(classes=("1", "x"))), tmp_path / "out")
    assert not (tmp_path / "out").exists()
