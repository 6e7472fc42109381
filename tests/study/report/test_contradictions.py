"""Files of a run that contradict each other."""

import json
import re
import shutil

import pytest
from click.testing import CliRunner
from tampering import (
    as_written_by_an_older_version,
    cut,
    edit,
    edit_metrics,
    edit_model,
    edit_values,
    epsilon_of,
    forge,
    other_contract,
    other_noise,
)

from hushgrad.cli.main import main
from hushgrad.errors import HushgradError
from hushgrad.study.report.comparison import contradictions
from hushgrad.study.report.files import CARD, DATA, PAGE, write_report
from hushgrad.study.report.run_facts import run_facts

ALARM = "FILES CONTRADICT EACH OTHER"


TAMPERED = {
    "a cut ledger": (lambda f: cut(f, charges=3), "ledger", "summary.json", "ledger.jsonl"),
    "a ledger without its last note": (cut, "the end of the ledger", "summary.json", "ledger.jsonl"),
    "forged noise": (lambda f: forge(f, other_noise), "σ", "summary.json", "ledger.jsonl"),
    "forged C": (lambda f: forge(f, other_contract(max_grad_norm=0.5)), "C", "summary.json", "ledger.jsonl"),
    "forged B": (lambda f: forge(f, other_contract(expected_batch_size=40.0)), "B", "summary.json", "ledger.jsonl"),
    "forged N": (lambda f: forge(f, other_contract(population=10**6)), "N", "summary.json", "ledger.jsonl"),
    "a smaller ε in the summary": (lambda f: edit(f, epsilon=0.1), "ε", "summary.json", "ledger.jsonl"),
    "a larger ε in the summary": (lambda f: edit(f, epsilon=99.5), "ε", "summary.json", "ledger.jsonl"),
    "no ε in the summary": (lambda f: edit(f, epsilon=...), "ε", "summary.json", "ledger.jsonl"),
    "words as ε": (lambda f: edit(f, epsilon="small"), "ε", "summary.json", "ledger.jsonl"),
    "fewer steps in the summary": (lambda f: edit(f, steps=7), "steps", "summary.json", "ledger.jsonl"),
    "more steps in the summary": (lambda f: edit(f, steps=9), "steps", "summary.json", "ledger.jsonl"),
    "another σ in the summary": (lambda f: edit(f, noise_multiplier=8.0), "σ", "summary.json", "ledger.jsonl"),
    "another C in the summary": (lambda f: edit(f, max_grad_norm=2.0), "C", "summary.json", "ledger.jsonl"),
    "another B in the summary": (lambda f: edit(f, expected_batch_size=4), "B", "summary.json", "ledger.jsonl"),
    "another N in the summary": (lambda f: edit(f, training_examples=10**6), "N", "summary.json", "ledger.jsonl"),
    "another q in the summary": (lambda f: edit(f, sampling_rate=0.001), "q", "summary.json", "ledger.jsonl"),
    "a larger δ in the summary": (lambda f: edit(f, delta=1e-3), "ε", "summary.json", "ledger.jsonl"),
    "a smaller δ in the summary": (lambda f: edit(f, delta=1e-9), "ε", "summary.json", "ledger.jsonl"),
    "another statement": (
        lambda f: edit(f, guarantee=lambda text: text.replace("add/remove-one", "no")), "statement", "summary.json",
        "ledger.jsonl",
    ),
    "a statement with a smaller ε": (
        lambda f: edit(f, guarantee=lambda text: re.sub(r"\([^,]+,", "(0.01,", text, count=1)), "statement",
        "summary.json", "ledger.jsonl",
    ),
    "another accuracy": (lambda f: edit(f, test_accuracy=0.999), "test accuracy", "summary.json", "metrics.jsonl"),
    "other parameters": (lambda f: edit(f, parameters=7), "parameters", "summary.json", "model.safetensors"),
    "lines of the metrics cut off": (
        lambda f: (f / "metrics.jsonl").write_text("".join((f / "metrics.jsonl").read_text().splitlines(True)[:-2])),
        "steps", "summary.json", "metrics.jsonl",
    ),
    "a smaller ε in the metrics": (
        lambda f: edit_metrics(f, -1, epsilon=lambda value: value / 2), "ε", "metrics.jsonl",
        "ledger.jsonl",
    ),
    "a larger ε in the metrics": (
        lambda f: edit_metrics(f, -1, epsilon=lambda value: 2 * value), "ε", "metrics.jsonl",
        "ledger.jsonl",
    ),
    "a larger ε in the middle of the metrics": (
        lambda f: edit_metrics(f, 2, epsilon=lambda value: 50.0), "the lines of metrics.jsonl", "", "",
    ),
    "a model of more steps": (lambda f: edit_model(f, steps="9"), "steps", "summary.json", "model.safetensors"),
    "a model with another statement": (
        lambda f: edit_model(f, guarantee="(0.01, 1e-05)-differential privacy after 8 steps"), "statement",
        "summary.json", "model.safetensors",
    ),
    "another relation in the summary": (
        lambda f: edit(f, adjacency="replace-one"), "the neighbouring relation", "summary.json", "ledger.jsonl",
    ),
    "no privacy in the summary": (
        lambda f: edit(f, private=False), "whether it is private", "summary.json", "ledger.jsonl",
    ),
    "another accountant in the summary": (
        lambda f: edit(f, accountant="rdp"), "the accountant", "summary.json", "ledger.jsonl",
    ),
    "another sampling in the summary": (
        lambda f: edit(f, sampling="full batch"), "the sampling", "summary.json", "ledger.jsonl",
    ),
    "something on trust in the summary": (
        lambda f: edit(f, taken_on_trust=["own scalar loss"]), "on trust", "summary.json", "ledger.jsonl",
    ),
    "no list of what is on trust in the summary": (
        lambda f: edit(f, taken_on_trust=...), "on trust", "summary.json", "ledger.jsonl",
    ),
    "no metrics": (
        lambda f: (f / "metrics.jsonl").unlink(), "the measurements", "summary.json", "metrics.jsonl",
    ),
    "other values in the model": (
        edit_values, "the values", "summary.json", "model.safetensors",
    ),
    "a model without words": (
        lambda f: edit_model(f, steps="", guarantee=""), "the words", "summary.json", "model.safetensors",
    ),
    "no ledger": (lambda f: (f / "ledger.jsonl").unlink(), "ledger", "summary.json", "ledger.jsonl"),
    "a summary of ordinary training": (
        lambda f: edit(f, private=False, epsilon="inf", delta=None, guarantee="NOT PRIVATE", noise_multiplier=None),
        "ε", "summary.json", "ledger.jsonl",
    ),
}  # fmt: skip


WITHOUT_A_HASH = {
    "a ledger without its last note",
    "another statement",
    "another sampling in the summary",
    "something on trust in the summary",
    "no list of what is on trust in the summary",
    "other values in the model",
    "a model without words",
}
"""What is found by what older versions did not write."""


@pytest.mark.parametrize("is_of_today", [True, False], ids=["hash", "older version"])
@pytest.mark.parametrize("name", TAMPERED)
def test_every_contradiction_is_named_with_its_files_and_the_largest_epsilon_is_shown(folder, name, is_of_today):
    """Guarantee: where files contradict each other, every contradiction is named, ε is the largest that any of them
    says and nothing is called private."""
    if not is_of_today:
        if name in WITHOUT_A_HASH:
            pytest.skip("cannot be seen without the hash")
        as_written_by_an_older_version(folder)
    before = epsilon_of(folder)
    tamper, what, *files = TAMPERED[name]
    tamper(folder)
    facts = run_facts(folder)
    found = contradictions(facts)
    assert any(what in sentence and all(f"{file} says" in sentence for file in files if file) for sentence in found)
    assert facts["steps"]["executed"] >= 8
    assert float(facts["privacy"]["epsilon"]) >= before * 0.9999
    assert not facts["privacy"]["private"]
    assert not {"epsilon_at", "mu", "rho", "attack", "other_accountants"} & facts["privacy"].keys()
    assert "NOTHING IS GUARANTEED" in facts["privacy"]["statement"]
    summary = json.loads((folder / "summary.json").read_text())
    if isinstance(summary.get("epsilon"), float):
        assert float(facts["privacy"]["epsilon"]) >= summary["epsilon"]


def test_the_ledger_of_another_run_with_the_same_settings_is_found_by_the_hash(folder, of_another_run):
    shutil.copy(of_another_run, folder / "ledger.jsonl")
    found = contradictions(run_facts(folder))
    assert len(found) == 1
    assert "has another: it was cut short, or is another run's" in found[0]


def test_page_json_card_and_terminal_begin_with_the_contradiction_and_never_show_the_smaller_epsilon(folder, tmp_path):
    larger = epsilon_of(folder)
    cut(folder, charges=3)
    result = CliRunner().invoke(main, ["report", str(folder), "--out", str(tmp_path / "out")], color=True)
    assert result.exit_code == 1
    assert result.stderr.startswith("\x1b[31m\x1b[1mFILES CONTRADICT EACH OTHER")
    assert "summary.json says 8; ledger.jsonl says 5" in result.stderr
    page, card = (tmp_path / "out" / PAGE).read_text(), (tmp_path / "out" / CARD).read_text()
    report = json.loads((tmp_path / "out" / DATA).read_text())
    assert next(iter(report)) == "contradictions"
    assert len(report["contradictions"]) >= 4
    assert report["facts"]["privacy"]["epsilon"] == larger
    assert page.index(ALARM) < page.index('<ul class="figures">')
    assert card.index(f"**{ALARM}**") < card.index("- **ε = ")
    after = page[page.index("</header>") :]
    for text in (page, card):
        assert text.count(ALARM) == 1
        assert "Differentially private" not in text
        assert "members found at most" not in text
        assert "-differential privacy" not in text.replace("\\", "")
    assert "ε = 1." not in after
    assert f"ε = {larger:.3f}"[:6] in page
    checked = CliRunner().invoke(main, ["report", "--check", str(folder), "--out", str(tmp_path / "out")])
    assert checked.exit_code == 1
    assert "the files agree: steps in summary.json and in the ledger" in checked.output


@pytest.mark.parametrize(
    "tamper",
    [
        lambda f: cut(f, charges=4),
        lambda f: edit(f, epsilon=0.01),
        lambda f: edit(f, steps=3),
        lambda f: edit_metrics(f, -1, step=lambda step: 7),
    ],
    ids=["cut below the summary", "summary edited", "steps edited", "metrics ahead of the ledger"],
)
def test_a_killed_run_whose_files_were_changed_raises_the_alarm(left_behind, tmp_path, tamper):
    folder = shutil.copytree(left_behind / "killed", tmp_path / "killed")
    tamper(folder)
    assert contradictions(run_facts(folder))


def test_an_earlier_report_that_saw_more_than_the_files_hold_raises_the_alarm_until_they_hold_it_again(
    left_behind, folder
):
    """All files of the folder go back to an earlier state of the same run together; only the report remembers."""
    assert write_report(folder, folder)["contradictions"] == []
    whole = epsilon_of(folder)
    files = ("ledger.jsonl", "summary.json", "metrics.jsonl", "model.safetensors")
    for file in files:
        shutil.copy(left_behind / "killed" / file, folder / file)
    for _ in range(2):  # the report that says so remembers it, too
        report = write_report(folder, folder)
        assert any(DATA in sentence for sentence in report["contradictions"])
        assert report["facts"]["privacy"]["epsilon"] == pytest.approx(whole, rel=1e-9)
    (folder / DATA).unlink()
    assert any(CARD in sentence for sentence in write_report(folder, folder)["contradictions"])
    for file in files:
        shutil.copy(left_behind / "whole" / file, folder / file)
    assert write_report(folder, folder)["contradictions"] == []


def runs_folder(sweep_folder, aim):
    return next(sweep_folder.glob(f"runs/*{aim}*"))


@pytest.mark.parametrize(
    ("tamper", "what"),
    [
        (lambda f: cut(f, charges=2), "steps: summary.json says 4; ledger.jsonl says 2"),
        (lambda f: edit(f, epsilon=0.01), "ε: summary.json says 0.01; ledger.jsonl says "),
        (lambda f: (f / "ledger.jsonl").unlink(), "the ledger of a run that states an ε"),
    ],
    ids=["cut ledger", "smaller ε", "no ledger"],
)
def test_a_contradicting_run_makes_the_sweeps_report_red_by_its_name(sweep_folder, tmp_path, tamper, what):
    """Guarantee: where the files of any run or attempt contradict each other, each contradiction is named with the
    folder, the run's ε is the largest that any of its files says, and a total that may be too small is infinite."""
    folder = runs_folder(sweep_folder, "sigma=3")
    larger = epsilon_of(folder)
    tamper(folder)
    result = CliRunner().invoke(main, ["report", str(sweep_folder), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.startswith(ALARM)
    report = json.loads((tmp_path / "out" / DATA).read_text())
    assert any(sentence.startswith(f"runs/{folder.name}: {what}") for sentence in report["contradictions"])
    facts = report["facts"]
    row = next(row for row in facts["runs"] if row["name"] == folder.name)
    assert float(row["epsilon"]) >= larger * 0.9999
    assert float(facts["choosing"]["all_private_attempts"]) >= larger * 0.9999
    assert all(float(best["alone"] or 9) >= larger * 0.9999 for best in facts["choosing"]["best"])
    assert all(float(best["drawn_number"] or 9) >= larger for best in facts["choosing"]["best"])
    page = (tmp_path / "out" / PAGE).read_text()
    assert page.index(ALARM) < page.index('<ul class="figures">')
    assert f"**{ALARM}**" in (tmp_path / "out" / CARD).read_text()


def test_an_attempt_that_was_given_up_is_compared_too_and_a_killed_one_is_no_contradiction(
    sweep_folder, left_behind, tmp_path
):
    attempt = shutil.copytree(left_behind / "killed", sweep_folder / "abandoned" / "x-1")
    honest = write_report(sweep_folder, tmp_path / "a")
    assert honest["contradictions"] == []
    cut(attempt, charges=4)
    report = write_report(sweep_folder, tmp_path / "b")
    assert any(sentence.startswith("abandoned/x-1: ") for sentence in report["contradictions"])
    assert report["facts"]["choosing"]["all_private_attempts"] == "inf"
    shutil.rmtree(attempt)
    (sweep_folder / "abandoned" / "y-1").mkdir()  # cut off before its ledger was made
    assert write_report(sweep_folder, tmp_path / "c")["contradictions"] == []


@pytest.mark.parametrize("key", ["epsilon", "steps", "delta", "test_accuracy", "noise_multiplier"])
@pytest.mark.parametrize("value", [10**400, 10**30, float("nan"), "x", [], {}, True, -1])
def test_no_value_in_a_summary_ends_in_anything_but_an_alarm_or_an_error_of_hushgrads_own(folder, key, value):
    edit(folder, **{key: value})
    try:
        facts = run_facts(folder)
    except HushgradError:
        return
    assert contradictions(facts)
