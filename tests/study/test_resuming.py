"""What `hushgrad train --resume` goes on with, and what it refuses before anything of the run is changed."""

import json
from dataclasses import replace

import pytest

from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import (
    BudgetExhaustedError,
    CheckpointError,
    ContractChangedError,
    DatasetError,
    InvalidArgumentError,
    LedgerError,
)
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.directory import RunDirectory
from hushgrad.study.report.agreement import agreement
from hushgrad.study.report.run_files import RunFiles
from hushgrad.study.resuming import resume
from hushgrad.study.run import Reporter, run
from hushgrad.study.tasks import TaskOptions, load_task


class PowerCutError(BaseException):
    """Ends a run without a word, as far as its files tell."""


def config(**changes):
    privacy = Privacy(**{"target_epsilon": 3.0, "max_grad_norm": 1.0, "spare_steps": 4, **changes.pop("privacy", {})})
    suggested = suggested_run("digits", privacy=privacy, options=TaskOptions(classes=("0", "1")))
    return replace(suggested, **{"batch_size": 100, "epochs": 2, **changes})


def stopped(out, at=3, **changes):
    def cut(step):
        if step == at:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        run(config(**changes), out, Reporter(on_step=cut))
    return out


def everything(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def refused(out, error, match, **given):
    """Guarantee: a run that cannot be continued is refused before anything of it is changed."""
    before = everything(out)
    with pytest.raises(error, match=match) as caught:
        resume(out, **given)
    assert everything(out) == before
    assert caught.value.cure
    return caught.value


def test_a_run_goes_on_under_its_own_settings_and_tells_what_was_lost(tmp_path):
    out = stopped(tmp_path / "run")
    resumed_at = []
    finished = resume(out, Reporter(on_resume=resumed_at.append))
    assert resumed_at == [2]
    assert (finished.summary["status"], finished.summary["steps"], finished.summary["lost_steps"]) == (
        "completed",
        6,
        1,
    )
    assert read_ledger(out / "ledger.jsonl").steps == 7
    assert "after 7 steps" in finished.summary["guarantee"]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["lost_steps"] for row in rows] == [0, 0, 1, 1, 1, 1]
    assert all(row.held for row in agreement(RunFiles.read(out), 1e-5))


def test_the_noise_of_a_target_pays_for_the_spare_steps(tmp_path):
    finished = resume(stopped(tmp_path / "run"))
    assert finished.summary["epsilon"] <= 3.0
    assert finished.summary["spare_steps"] == 4


def test_without_spare_steps_the_lost_ones_are_taken_from_the_end(tmp_path):
    finished = resume(stopped(tmp_path / "run", privacy={"spare_steps": 0}))
    assert (finished.summary["status"], finished.summary["steps"], finished.summary["lost_steps"]) == (
        "completed",
        5,
        1,
    )
    assert finished.summary["test_accuracy"] is not None
    assert finished.summary["epsilon"] <= 3.0


def test_a_run_that_has_lost_its_last_steps_ends_with_the_checkpoint(tmp_path):
    out = stopped(tmp_path / "run", at=6, privacy={"spare_steps": 0})
    finished = resume(out)
    assert (finished.summary["status"], finished.summary["steps"], finished.summary["lost_steps"]) == (
        "completed",
        5,
        1,
    )
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[-1]["test_accuracy"] == finished.summary["test_accuracy"]
    assert all(row.held for row in agreement(RunFiles.read(out), 1e-5))


def test_a_run_whose_only_steps_are_lost_says_that_nothing_is_left(tmp_path):
    everybody = len(load_task("digits", TaskOptions(classes=("0", "1"))).train)
    out = stopped(tmp_path / "run", at=1, batch_size=everybody, epochs=1, privacy={"spare_steps": 0})
    with pytest.raises(BudgetExhaustedError, match="every one of them"):
        resume(out)


def test_with_a_noise_multiplier_the_planned_end_is_reached_and_epsilon_says_more(tmp_path):
    out = stopped(tmp_path / "run", privacy={"target_epsilon": None, "noise_multiplier": 2.0, "spare_steps": 0})
    finished = resume(out)
    assert (finished.summary["steps"], finished.summary["lost_steps"]) == (6, 1)


def test_spare_steps_that_nothing_needs_are_refused():
    with pytest.raises(InvalidArgumentError, match="nothing limits the steps"):
        Privacy(noise_multiplier=1.0, max_grad_norm=1.0, spare_steps=3)


def test_an_interrupted_run_goes_on(tmp_path):
    stop = []
    out = tmp_path / "run"

    def ask(step):
        stop.append(step)

    import signal

    def interrupt(step):
        if step == 4:
            signal.raise_signal(signal.SIGINT)

    first = run(config(), out, Reporter(on_step=interrupt))
    assert first.outcome.status == "interrupted"
    second = resume(out, Reporter(on_step=ask))
    assert stop == [5, 6]
    assert (second.summary["status"], second.summary["lost_steps"]) == ("completed", 0)


def test_a_completed_run_is_refused(tmp_path):
    run(config(epochs=1), tmp_path / "run")
    refused(tmp_path / "run", InvalidArgumentError, "completed: all of its steps are spent")


def test_a_folder_without_a_run_is_refused(tmp_path):
    refused(tmp_path, InvalidArgumentError, "holds no run")


def test_an_ordinary_run_is_refused(tmp_path):
    out = tmp_path / "run"
    run(replace(config(epochs=1), privacy=None), out)
    refused(out, InvalidArgumentError, "ordinary training")


def test_a_missing_ledger_is_refused(tmp_path):
    out = stopped(tmp_path / "run")
    (out / "ledger.jsonl").unlink()
    refused(out, LedgerError, "there is no ledger")


def test_a_ledger_that_was_cut_is_refused(tmp_path):
    out = stopped(tmp_path / "run", at=5)
    lines = (out / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (out / "ledger.jsonl").write_bytes(b"".join(lines[:3]))
    refused(out, LedgerError, "ledger")


def test_the_ledger_of_another_run_is_refused(tmp_path):
    out, other = stopped(tmp_path / "run"), stopped(tmp_path / "other")
    (out / "ledger.jsonl").write_bytes((other / "ledger.jsonl").read_bytes())
    refused(out, LedgerError, "ledger of another run")


def test_a_missing_checkpoint_of_a_run_that_has_trained_is_refused(tmp_path):
    out = stopped(tmp_path / "run")
    (out / "checkpoint.safetensors").unlink()
    refused(out, CheckpointError, "it is missing")


def test_other_settings_are_refused_and_other_threads_are_not(tmp_path):
    out = stopped(tmp_path / "run")
    error = refused(out, ContractChangedError, "learning_rate would be another", changes={"learning_rate": 9.0})
    assert "threads" in error.cure
    assert resume(out, changes={"threads": 2, "learning_rate": 0.1}).outcome.status == "completed"


def test_settings_that_were_edited_in_the_folder_are_refused(tmp_path):
    out = stopped(tmp_path / "run")
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**settings, "learning_rate": 9.0}))
    refused(out, ContractChangedError, "other settings")


def table(path, first):
    lines = [f"{first if row == 0 else row % 7},{row % 3},{'yes' if row % 2 else 'no'}" for row in range(200)]
    path.write_text("\n".join(["a,b,label", *lines]) + "\n")
    return path


def test_other_data_are_refused_without_a_value_of_them_and_moved_ones_are_not(tmp_path):
    privacy = Privacy(target_epsilon=3.0, max_grad_norm=1.0, delta=1e-3, spare_steps=4)
    options = TaskOptions(data=table(tmp_path / "a.csv", 5), target="label")
    settings = replace(suggested_run("csv", privacy=privacy, options=options), batch_size=40, epochs=2)
    out = tmp_path / "run"

    def cut(step):
        if step == 3:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        run(settings, out, Reporter(on_step=cut))
    table(tmp_path / "a.csv", 123456)
    error = refused(out, DatasetError, "not those that the run was begun with")
    assert "123456" not in str(error)
    moved = table(tmp_path / "moved.csv", 5)
    assert resume(out, changes={"data": moved}).outcome.status == "completed"


def test_the_digest_of_the_data_is_in_no_file_that_outlives_the_run(tmp_path):
    out = stopped(tmp_path / "run")
    digest = json.loads((out / "fingerprint.json").read_text())["digest"]
    resume(out)
    assert not RunDirectory(out).fingerprint.exists()
    assert not any(digest.encode() in content for content in everything(out).values())


def test_a_counted_vocabulary_is_paid_for_once(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("train", 300), ("dev", 40)):
        lines = [f"{row % 2}\tword{row % 5} {'good' if row % 2 else 'bad'} film" for row in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["label\tsentence", *lines]) + "\n")
    options = TaskOptions(data=folder, vocabulary="counted", vocabulary_epsilon=1.0)
    privacy = Privacy(target_epsilon=4.0, max_grad_norm=1.0, delta=1e-3, spare_steps=2)
    settings = replace(suggested_run("text", privacy=privacy, options=options), batch_size=100, epochs=1)
    out = tmp_path / "run"

    def cut(step):
        if step == 2:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        run(settings, out, Reporter(on_step=cut))
    words = (out / "vocabulary.json").read_bytes()
    finished = resume(out)
    assert (out / "vocabulary.json").read_bytes() == words
    assert (finished.summary["steps"], finished.summary["lost_steps"]) == (3, 1)
    assert finished.summary["epsilon"] <= 4.0
    events = read_ledger(out / "ledger.jsonl").events
    assert [(event.is_step, count) for event, count in events] == [(False, 1), (True, 4)]
    assert all(row.held for row in agreement(RunFiles.read(out), 1e-3))
