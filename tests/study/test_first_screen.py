"""The walk of a newcomer with a table of patients, 4 of 100 positive: what screen, summary and report say."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from hushgrad.cli.main import main
from hushgrad.study.trained.card import model_card

ROWS = 6000


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A made-up table: who has died depends on age and on a blood value, and 4 of 100 have."""
    draw = np.random.default_rng(5)
    age, blood, ward = draw.normal(60, 12, ROWS), draw.normal(0, 1, ROWS), draw.integers(0, 3, ROWS)
    score = 1.2 * (age - 60) / 12 + 1.2 * blood
    dies = score + draw.logistic(0, 0.5, ROWS) > np.quantile(score, 0.98)
    path = tmp_path_factory.mktemp("table") / "patients.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "blood", "ward", "died"])
        for row in zip(age, blood, ward, dies, strict=True):
            writer.writerow([f"{row[0]:.0f}", f"{row[1]:.2f}", "ABC"[row[2]], "yes" if row[3] else "no"])
    return path


def trained(table, out, *options):
    told = CliRunner().invoke(
        main,
        ["train", "--task", "csv", "--data", str(table), "--target", "died", "--classes", "no,yes", "--epsilon", "3",
         "--epochs", "12", "--out", str(out), *options],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    return told.output, json.loads((out / "summary.json").read_text())


KNOWN = ("--bounds", "age:0:120", "--bounds", "blood:-4:4")


@pytest.fixture(scope="module")
def empty(table, tmp_path_factory):
    """A run on nothing but the ward, which tells nothing of who dies: its model says "no" to all."""
    out = tmp_path_factory.mktemp("empty") / "run"
    return (*trained(table, out, "--drop", "age,blood", "--by", "Ada <b>L.</b>"), out)


def test_the_empty_model_is_called_empty(empty):
    """On the screen, in the summary, on the report's page and in both cards."""
    screen, summary, out = empty
    share = summary["test_scores"]["largest_class_share"]
    assert summary["test_accuracy"] == share > 0.94
    assert summary["test_scores"]["only_answer"] == "no"
    said = f"The model gives one answer, 'no', to all {summary['test_examples']} test records"
    assert said in screen
    assert f"(always answering 'no': {share:.2%})" in screen
    assert "Recall: 'no' 100.0%, 'yes' 0.0%." in screen
    measured = [line for line in screen.splitlines() if "%" in line and "accuracy" in line]
    assert measured
    assert all("largest class" in line or "always answering" in line for line in measured)  # no accuracy stands alone
    reported = CliRunner().invoke(main, ["report", str(out)])
    assert said in reported.output
    page, card = (out / "report.html").read_text(), (out / "model-card.md").read_text()
    assert f'<p class="notice">{said}'.replace("'", "&#39;") in page
    assert said in card
    assert "always answering 'no'" in model_card(out, "model.safetensors")


def test_a_model_at_epsilon_3_ranks_patients(table, tmp_path):
    """In seven runs the AUC was 0.915 with a standard deviation of 0.003: false alarms are below 1e-9."""
    screen, summary = trained(table, tmp_path / "run", *KNOWN)
    assert summary["epsilon"] <= 3
    assert summary["test_scores"]["auc"] > 0.7
    assert f"AUC {summary['test_scores']['auc']:.3f}" in screen


@pytest.mark.slow
def test_weights_of_classes_let_the_rare_one_be_found(table, tmp_path):
    screen, weighted = trained(table, tmp_path / "weighted", *KNOWN, "--class-weights", "yes:25")
    assert weighted["test_scores"]["auc"] > 0.7
    assert weighted["test_scores"]["only_answer"] is None
    assert weighted["test_scores"]["balanced_accuracy"] > 0.6
    assert "gives one answer" not in screen


def test_epsilon_is_put_in_plain_words_on_the_screen_and_on_top_of_the_report(empty):
    screen, _, out = empty
    attacker = (
        "Somebody who knows all other records and sees every step of training guesses whether one record took part"
    )
    assert attacker in screen
    assert "ε up to 1 counts as strong" in screen
    CliRunner().invoke(main, ["report", str(out)])
    page = (out / "report.html").read_text()
    assert page.index(f'<p class="lead">{attacker}') < page.index("<h2>Statement</h2>")


def test_the_report_says_when_by_whom_and_on_what_and_has_room_for_a_decision(empty):
    """The data's digest and the name stay out of both model cards, and the digest out of a report that is not asked."""
    _, _, out = empty
    digest = json.loads((out / "provenance.json").read_text())["data"]["sha256"]
    CliRunner().invoke(main, ["report", str(out)])
    page = (out / "report.html").read_text()
    assert "Ada &lt;b&gt;L.&lt;/b&gt;" in page
    assert "patients.csv" in page
    assert '<section class="checks">' in page
    assert '<section class="signatures">' in page
    assert "What its monitors found" in page
    assert digest not in page + (out / "report.json").read_text() + (out / "summary.json").read_text()
    shown = CliRunner().invoke(main, ["report", str(out), "--with-data-digest"])
    assert shown.exit_code == 0
    assert digest in (out / "report.html").read_text()
    assert CliRunner().invoke(main, ["report", str(out), "--check"]).exit_code == 0
    for card in ((out / "model-card.md").read_text(), model_card(out, "model.safetensors")):
        assert digest not in card
        assert "Ada" not in card
        assert "patients.csv" not in card


def test_a_changed_recall_or_auc_turns_the_report_red(empty, tmp_path):
    _, summary, out = empty
    for change in ({"auc": 0.99}, {"balanced_accuracy": 0.9}, {"only_answer": None}, {"largest_class_share": 0.5}):
        (tmp_path / "run").mkdir(exist_ok=True)
        for file in out.iterdir():
            if file.is_file() and not file.name.startswith(("report", "model-card")):
                (tmp_path / "run" / file.name).write_bytes(file.read_bytes())
        changed = {**summary, "test_scores": {**summary["test_scores"], **change}}
        (tmp_path / "run" / "summary.json").write_text(json.dumps(changed))
        told = CliRunner().invoke(main, ["report", str(tmp_path / "run")])
        assert told.exit_code == 1
        assert 'role="alert"' in (tmp_path / "run" / "report.html").read_text()


def test_a_second_run_in_the_folder_is_refused_with_what_the_first_has_spent(empty, table):
    _, _, out = empty
    told = CliRunner().invoke(
        main, ["train", "--task", "csv", "--data", str(table), "--target", "died", "--epsilon", "3", "--out", str(out)]
    )
    assert told.exit_code == 1
    assert "holds a completed run, which has spent ε = 3 at δ = 1e-05" in told.output


def test_a_second_run_on_the_same_data_says_what_both_have_spent(empty, table):
    _, _, out = empty
    screen, summary = trained(table, out.parent / "second", "--drop", "age,blood")
    assert "With another run beside it on the same data: ε = " in screen
    together = float(screen.split("on the same data: ε = ")[1].split(" ")[0])
    assert 1.3 * summary["epsilon"] < together < 2 * summary["epsilon"]


def test_status_sums_what_runs_on_one_file_have_spent(empty):
    _, _, out = empty
    told = CliRunner().invoke(main, ["status", str(out.parent), "--json"])
    (data,) = json.loads(told.output)["data"]
    assert data["data"] == "patients.csv"
    alone = [run["epsilon"] for run in data["runs"]]
    assert max(alone) <= data["epsilon_together"] <= sum(alone)
