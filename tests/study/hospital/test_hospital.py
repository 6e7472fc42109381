"""Somebody's export as it is (Latin-1, semicolons, several rows a patient), to a model that predicts new rows."""

import csv
import json

import pytest
from click.testing import CliRunner
from hospital_stays import COLUMNS, area_under_curve, as_csv, stays

import hushgrad
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.cli.main import main
from hushgrad.study.named_settings import configured, values_from_file
from hushgrad.study.resuming import read_config, resume
from hushgrad.study.run import Reporter, load_for, run
from hushgrad.study.trained.attack import attack_run

RECORDS = 3
UNIT = f"one user (all records with the same Patient, at most {RECORDS} of them)"
PUBLIC = {
    "Alter": {"range": [0, 120]},
    "Abteilung": {"categories": ["Chirurgie", "Innere", "Gynäkologie", "Pädiatrie", "Intensiv"]},
    "gestorben": {"categories": ["nein", "ja"]},
    "Aufnahme": {"date_format": "%d.%m.%Y"},
}


def command(*words):
    result = CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def trained(folder, rows, seed=0):
    """Look at the table, sign a schema, and train; return the folder of the run and what the screen said."""
    data, schema, out = folder / "stays.csv", folder / "schema.json", folder / "run"
    data.write_bytes(as_csv(stays(rows, seed)))
    command("data", data, "--encoding", "latin-1", "--out", schema)
    value = json.loads(schema.read_text())
    for name, declared in PUBLIC.items():
        value["columns"][name] |= {"basis": "public", **declared}
    schema.write_text(json.dumps({**value, "signed_by": "Dr. A. Example"}))
    said = command(
        *("train", "--task", "csv", "--data", data, "--schema", schema, "--target", "gestorben"),
        *("--person", "Patient", "--records-per-person", RECORDS, "--epsilon", 3, "--out", out),
    )
    return out, said


def predicted(out, folder, rows):
    """Return the probability of a death for new rows, which have fewer columns, in another order."""
    file, table = folder / "new.csv", folder / "scores.csv"
    kept = [name for name in COLUMNS if name not in ("gestorben", "Patient", "Fallnr")]
    file.write_bytes(as_csv([{name: row[name] for name in kept} for row in rows]))
    command("predict", out, "--data", file, "--output", table)
    with table.open() as lines:
        return [float(line["probability of ja"]) for line in csv.DictReader(lines)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run on 300 rows."""
    folder = tmp_path_factory.mktemp("small")
    return folder, *trained(folder, 300)


def test_300_rows_of_patients_become_a_model_that_predicts_new_rows(small):
    folder, out, said = small
    summary = json.loads((out / "summary.json").read_text())
    assert f"differential privacy (epsilon, delta) for {UNIT}" in summary["guarantee"]
    assert summary["epsilon"] <= 3
    ledger = read_ledger(out / "ledger.jsonl")
    assert (ledger.contract.unit, ledger.contract.population) == (UNIT, summary["training_people"])
    assert summary["expected_batch_size"] == summary["training_people"] // 4  # nobody chose it, and they are few
    assert summary["schema_signed_by"] == "Dr. A. Example"
    assert not any("list of classes" in item for item in summary["outside_the_guarantee"])
    assert any(item.endswith("read off the data: Größe, Kreatinin, Tage") for item in summary["outside_the_guarantee"])
    assert any(item.endswith("as the schema says: Fallnr, Haus") for item in summary["outside_the_guarantee"])
    assert f"of {summary['training_people']} people" in said
    names = {column.name for column in hushgrad.load(out).encoder.columns}
    assert not names & {"Patient", "Fallnr", "Haus", "gestorben"}
    assert len(predicted(out, folder, stays(50, 1))) == 50


def test_no_person_is_on_both_sides_or_has_more_rows_than_declared(small):
    _, out, _ = small
    task = load_for(read_config(out))
    assert task.people.ids.most <= RECORDS
    assert len(task.train) + len(task.test) < 300  # some had more


def test_the_report_says_the_unit_and_its_checks_hold(small):
    _, out, _ = small
    command("report", out)
    card = (out / "model-card.md").read_text()
    assert f"drawn and clipped whole, as {UNIT}" in card
    assert "One person has one record" not in card
    assert "checks hold" in command("report", out, "--check")


def test_an_attack_reads_the_same_rows_again(small):
    _, out, _ = small
    summary = json.loads((out / "summary.json").read_text())
    report = attack_run(out)
    assert (report.members, report.others) == (summary["training_examples"], summary["test_examples"])


def test_a_run_on_people_that_was_cut_off_goes_on_with_the_same_rows(small, tmp_path):
    class PowerCutError(BaseException):
        pass

    def cut(step):
        if step == 3:
            raise PowerCutError

    _, out, _ = small
    config = configured({**values_from_file(out / "config.json"), "epochs": 2})
    with pytest.raises(PowerCutError):
        run(config, tmp_path / "cut", Reporter(on_step=cut))
    finished = resume(tmp_path / "cut")
    assert (finished.summary["status"], finished.summary["epsilon"] <= 3) == ("completed", True)
    assert UNIT in finished.summary["guarantee"]


@pytest.mark.slow
def test_60000_rows_rank_new_stays_well_above_chance_at_epsilon_3_for_a_patient(tmp_path):
    out, _ = trained(tmp_path, 60_000)
    new = stays(20_000, 1)
    scores = predicted(out, tmp_path, new)
    assert json.loads((out / "summary.json").read_text())["epsilon"] <= 3
    assert area_under_curve(scores, [row["gestorben"] == "ja" for row in new]) > 0.7
