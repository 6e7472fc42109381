"""Files of a run that differ because it was killed, goes on or was continued, and files that cannot be read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tampering import (
    as_written_by_an_older_version,
    edit,
    edit_model,
    epsilon_of,
    forge,
)

from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.cli.main import main
from hushgrad.errors import InvalidArgumentError
from hushgrad.releases import Count, release
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.report.comparison import contradictions
from hushgrad.study.report.files import DATA, PAGE, write_report
from hushgrad.study.report.run_facts import run_facts
from hushgrad.study.resuming import resume
from hushgrad.study.run import Reporter, run

ALARM = "FILES CONTRADICT EACH OTHER"


def test_untouched_files_are_reported_without_alarm(folder, tmp_path):
    for made in (folder, as_written_by_an_older_version(folder)):
        result = CliRunner().invoke(main, ["report", str(made), "--out", str(tmp_path / "out")])
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        assert ALARM not in (tmp_path / "out" / PAGE).read_text()
        assert json.loads((tmp_path / "out" / DATA).read_text())["contradictions"] == []
        assert run_facts(made)["notices"] == []


@pytest.mark.parametrize("is_of_today", [True, False], ids=["hash", "older version"])
def test_a_run_that_was_killed_after_its_summary_shows_what_the_ledger_holds_and_no_alarm(
    left_behind, tmp_path, is_of_today
):
    folder = shutil.copytree(left_behind / "killed", tmp_path / "killed")
    if not is_of_today:
        as_written_by_an_older_version(folder)
    facts = run_facts(folder)
    assert contradictions(facts) == ()
    assert facts["steps"]["executed"] == 6
    assert facts["privacy"]["epsilon"] > epsilon_of(folder)
    assert facts["privacy"]["private"]
    assert "2 steps more than the 4" in facts["notices"][0]
    result = CliRunner().invoke(main, ["report", str(folder)])
    assert result.exit_code == 0
    assert '<p class="notice">ledger.jsonl holds 2 steps more' in (folder / PAGE).read_text()
    assert CliRunner().invoke(main, ["report", "--check", str(folder)]).exit_code == 0


def test_a_ledger_that_was_continued_after_the_run_ended_is_told_and_no_alarm(folder):
    view = read_ledger(folder / "ledger.jsonl")
    with Ledger(folder / "ledger.jsonl", contract=view.contract) as ledger:
        ledger.charge(PoissonSampled(view.events[0][0].sampling_rate, 1.0), 5)
    facts = run_facts(folder)
    assert contradictions(facts) == ()
    assert "5 steps more than the 8" in facts["notices"][0]
    assert facts["privacy"]["epsilon"] > epsilon_of(folder)
    edit(folder, ledger=...)  # without the hash nobody can tell a continued ledger from an edited summary
    assert contradictions(run_facts(folder))


def test_a_model_that_is_older_than_its_summary_is_told_and_no_alarm(left_behind, folder):
    shutil.copy(left_behind / "killed" / "model.safetensors", folder / "model.safetensors")
    facts = run_facts(folder)
    assert contradictions(facts) == ()
    assert facts["notices"] == ["model.safetensors is of step 4, older than the 8 steps that summary.json describes"]


def test_a_model_that_is_missing_is_told_and_no_alarm(left_behind, folder):
    (folder / "model.safetensors").unlink()
    facts = run_facts(folder)
    assert contradictions(facts) == ()
    assert facts["notices"] == [
        "model.safetensors is missing, though summary.json says that the run has ended: it was removed or moved"
    ]
    killed = shutil.copytree(left_behind / "killed", folder / "killed")
    (killed / "model.safetensors").unlink()
    assert all("model" not in notice for notice in run_facts(killed)["notices"])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_last_line_of_the_metrics_that_a_crash_cut_off_is_told_and_the_others_are_read(folder, share):
    path = folder / "metrics.jsonl"
    whole = run_facts(folder)
    line = path.read_bytes().splitlines(keepends=True)[-1]
    with path.open("ab") as stream:
        stream.write(line[: max(1, int(share * len(line)) - 1)])
    facts = run_facts(folder)
    assert contradictions(facts) == ()
    assert facts["curves"] == whole["curves"]
    assert facts["notices"] == [
        "the last line of metrics.jsonl was cut off while it was written; what stands before it is whole"
    ]
    with path.open("ab") as stream:
        stream.write(b"\n")
    with pytest.raises(InvalidArgumentError, match="is damaged"):
        run_facts(folder)


@pytest.mark.parametrize("key", ["adjacency", "private", "sampling", "accountant", "taken_on_trust", "model_digest"])
def test_a_summary_of_an_older_version_that_does_not_say_something_is_readable(folder, key):
    edit(folder, **{key: ...}, versions=lambda versions: versions | {"hushgrad": "0.0.1"})
    assert contradictions(run_facts(folder)) == ()


def test_a_model_that_was_saved_again_with_the_same_values_and_words_is_the_same(folder):
    for _ in range(5):  # the words of a header stand in any order
        edit_model(folder)
        assert contradictions(run_facts(folder)) == ()


@pytest.mark.parametrize("name", ["never examined", "discarded batches", "closed session"])
def test_a_condition_that_only_a_session_knows_is_no_contradiction(folder, name):
    edit(folder, taken_on_trust=lambda names: [*names, name])
    assert contradictions(run_facts(folder)) == ()


def test_without_a_summary_the_error_says_what_was_spent(folder):
    (folder / "summary.json").unlink()
    with pytest.raises(
        InvalidArgumentError, match=r"summary.json: the file is missing, and ledger.jsonl holds 8 steps, ε = 1\."
    ):
        run_facts(folder)


def test_reports_of_a_run_that_goes_on_and_of_two_runs_in_one_place_raise_no_alarm(left_behind, folder, tmp_path):
    assert write_report(left_behind / "whole", tmp_path / "out")["contradictions"] == []
    other = tmp_path / "out"
    for file in ("ledger.jsonl", "summary.json", "metrics.jsonl", "model.safetensors"):
        shutil.copy(left_behind / "killed" / file, folder / file)
    assert write_report(folder, folder)["contradictions"] == []
    for file in ("ledger.jsonl", "summary.json", "metrics.jsonl", "model.safetensors"):
        shutil.copy(left_behind / "whole" / file, folder / file)
    assert write_report(folder, folder)["contradictions"] == []
    forge(folder, lambda record: record | {"run": "another"} if record["kind"] == "header" else record)
    edit(folder, ledger=...)
    assert write_report(folder, other)["contradictions"] == []


def test_conditions_that_only_the_run_knew_stay_beside_the_statement(folder):
    edit(folder, guarantee=lambda text: f"{text} 2 logical batches were discarded.")
    edit_model(folder, guarantee=json.loads((folder / "summary.json").read_text())["guarantee"])
    facts = run_facts(folder)
    assert contradictions(facts) == ()
    assert facts["privacy"]["beyond_ledger"] == "2 logical batches were discarded."
    write_report(folder, folder)
    assert "<p>2 logical batches were discarded.</p>" in (folder / PAGE).read_text()


@pytest.mark.parametrize("line", ["{", "[]", '{"step": 1}', '{"step": "1", "test_accuracy": 1, "epsilon": 1}', "\xff"])
def test_a_line_of_the_metrics_that_is_no_measurement_is_refused(folder, line):
    with (folder / "metrics.jsonl").open("ab") as stream:
        stream.write(line.encode("latin-1") + b"\n")
    with pytest.raises(InvalidArgumentError, match=r"line \d+ of a run's metrics.jsonl: the line is damaged"):
        run_facts(folder)


@pytest.mark.parametrize("end", [1, [], {"records": "8", "hash": "a"}, {"records": 8}])
def test_what_cannot_be_the_end_of_a_ledger_is_refused(folder, end):
    edit(folder, ledger=end)
    with pytest.raises(InvalidArgumentError, match=r"summary\.json: the file is damaged"):
        run_facts(folder)


def test_a_run_whose_vocabulary_was_charged_as_a_step_is_read_as_it_was_meant():
    """The files are those of a run of the version before counting became a release; its model is left out."""
    facts = run_facts(Path(__file__).parent / "counted_as_a_step")
    assert [row["what"] for row in facts["agreement"] if not row["held"]] == []
    assert facts["steps"] == {"planned": 10, "executed": 10}
    assert facts["privacy"]["private"]
    assert facts["privacy"]["epsilon"] == pytest.approx(3.999924176, rel=1e-6)


def test_a_statistic_that_is_released_while_a_run_rests_is_no_step_of_it(tmp_path):
    """Before the last step it counts in what was measured then; after it, it does not."""
    privacy = Privacy(noise_multiplier=3.0, max_grad_norm=1.0)
    settings = replace(suggested_run("digits", privacy=privacy), batch_size=400, epochs=2)
    out = tmp_path / "run"

    def cut(step):
        if step == 6:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(settings, out, Reporter(on_step=cut))
    for is_resumed in (False, True):
        release(Count(of=bool), [1] * 1438, ledger=out / "ledger.jsonl", noise_multiplier=20.0)
        if not is_resumed:
            summary = resume(out).summary
    facts = run_facts(out)
    assert [row["what"] for row in facts["agreement"] if not row["held"]] == []
    assert facts["privacy"]["epsilon"] > summary["epsilon"]
    assert facts["steps"]["executed"] == 8 + summary["lost_steps"]
