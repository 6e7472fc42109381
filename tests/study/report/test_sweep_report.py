import math

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.study.report.files import CARD, PAGE, check_report, write_report
from hushgrad.study.report.sweep_document import is_without_a_run
from hushgrad.study.run import run
from hushgrad.study.sweep.folder import SweepFolder
from hushgrad.study.sweep.plan import Grid, Subject, config_of, make_plan


def test_the_sweeps_report_counts_every_attempt_in_what_choosing_costs(sweep_folder, tmp_path):
    folder = SweepFolder.existing(sweep_folder)
    private = next(path for path in folder.path.glob("runs/*sigma=3*"))
    alone = write_report(sweep_folder, tmp_path / "a")["facts"]["choosing"]
    events = read_ledger(private / "ledger.jsonl").events
    assert alone["all_private_attempts"] == epsilon(events, 1e-5)
    assert alone["everything"] == "inf"
    assert (alone["noiseless_attempts"], alone["ordinary_runs"], alone["private_attempts"]) == (1, 1, 1)
    # An attempt that was cut off has released as much as its ledger says.
    attempt = folder.path / "abandoned" / "x-1"
    attempt.mkdir()
    (attempt / "ledger.jsonl").write_bytes((private / "ledger.jsonl").read_bytes())
    both = write_report(sweep_folder, tmp_path / "b")["facts"]["choosing"]
    assert both["all_private_attempts"] == epsilon([*events, *events], 1e-5) > alone["all_private_attempts"]
    assert both["best"][0]["drawn_number"] > both["best"][0]["alone"]


def test_the_sweeps_report_holds_and_a_change_is_found(sweep_folder, tmp_path):
    write_report(sweep_folder, tmp_path / "out")
    assert all(check.held for check in check_report(sweep_folder, tmp_path / "out"))
    summary = next(sweep_folder.glob("runs/*sigma=3*/summary.json"))
    summary.write_text(summary.read_text().replace('"epsilon": ', '"epsilon": 1'))
    wrong = [check.what for check in check_report(sweep_folder, tmp_path / "out") if not check.held]
    assert any("in summary.json and from its ledger" in what for what in wrong)


def test_a_failed_runs_message_stays_out_of_the_report(sweep_folder, tmp_path):
    facts = write_report(sweep_folder, tmp_path)["facts"]
    assert [run["error"] for run in facts["runs"] if run["status"] == "failed"] == ["RuntimeError"]
    assert all("value of the data" not in path.read_text() for path in tmp_path.glob("*.*"))


def test_a_sweep_without_a_completed_run_gets_no_badge_of_privacy_and_no_epsilon(tmp_path):
    plan = make_plan("s", (Subject("digits", task="digits"),), Grid(noise_multipliers=(1, 2), seeds=(0,)))
    folder = SweepFolder.open(tmp_path / "sweep", plan)
    for planned in plan.runs[:2]:
        folder.record_failure(planned.name, "TaskDataError", "m")
    facts = write_report(folder.path, tmp_path / "out")["facts"]
    assert is_without_a_run(facts)
    page, card = (tmp_path / "out" / PAGE).read_text(), (tmp_path / "out" / CARD).read_text()
    for text in (page, card):
        assert "NO RUN WAS COMPLETED" in text
        assert "Differentially private" not in text
        assert "2 of 3 runs failed" in text
        assert "1 of 3 runs were not finished" in text
        assert "publishing everything" not in text
    assert 'class="badge open"' in page
    assert all(check.held for check in check_report(folder.path, tmp_path / "out"))


def test_a_report_says_how_many_runs_of_a_sweep_failed(sweep_folder, tmp_path):
    facts = write_report(sweep_folder, tmp_path)["facts"]
    assert facts["notices"] == ["1 of 4 runs failed; the sweep's own command tries them again"]
    assert not is_without_a_run(facts)
    assert facts["notices"][0].replace("'", "&#39;") in (tmp_path / PAGE).read_text()


def test_the_sweeps_page_compares_runs_and_states_what_choosing_costs(sweep_folder, tmp_path):
    facts = write_report(sweep_folder, tmp_path)["facts"]
    page, card = (tmp_path / PAGE).read_text(), (tmp_path / CARD).read_text()
    for text in (page, card.replace("\\", "")):
        assert "What choosing among them costs" in text
        assert "NOT PRIVATE" in text
        assert "σ=3" in text
    assert page.count("data:image/svg+xml") == 2
    assert math.isclose(facts["over_seeds"][2]["epsilon"], facts["runs"][2]["ledger_epsilon"])


def test_the_report_of_a_sweep_at_target_epsilons_names_each_ones_settings_and_holds(tmp_path):
    settings = {"epochs": 1, "batch_size": 400, "augmentations": 2, "average_decay": 0.9}
    subject = Subject("digits", task="digits", settings=settings)
    plan = make_plan("s", (subject,), Grid(target_epsilons=(1, 8), baseline=False, seeds=(0,)))
    folder = SweepFolder.open(tmp_path / "sweep", plan)
    for planned in plan.runs:
        run(config_of(planned), folder.finished(planned.name))
    facts = write_report(folder.path, tmp_path / "out")["facts"]
    assert [one["settings"]["augmentations"] for one in facts["runs"]] == [2, 2]
    page = (tmp_path / "out" / PAGE).read_text()
    for planned in plan.runs:
        rate = config_of(planned).learning_rate
        assert f"epochs 1, optimizer sgd, learning rate {rate:g}" in page
    assert "augmentations 2, average decay 0.9" in page
    assert all(check.held for check in check_report(folder.path, tmp_path / "out"))
    write_report(folder.finished(plan.runs[0].name), tmp_path / "one")
    assert "2 random ones; their mean loss makes one gradient" in (tmp_path / "one" / PAGE).read_text()
