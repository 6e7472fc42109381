import base64
import json
import math
import re
from dataclasses import replace

import pytest

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.accounting.risk import gaussian_mu, true_positive_rate
from hushgrad.checks.auditing.audit import audit
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import InvalidArgumentError, LedgerError
from hushgrad.mechanism import DPSGD
from hushgrad.sampling.poisson import PoissonSampling
from hushgrad.study.configuration import suggested_run
from hushgrad.study.directory import json_text
from hushgrad.study.report import files
from hushgrad.study.report.files import CARD, DATA, PAGE, check_report, write_report
from hushgrad.study.report.run_facts import same
from hushgrad.study.run import run


def wrong(folder, out):
    return [check.what for check in check_report(folder, out) if not check.held]


def test_the_report_says_what_the_ledger_gives(run_folder, tmp_path):
    facts = write_report(run_folder, tmp_path / "out")["facts"]
    events = read_ledger(run_folder / "ledger.jsonl").events
    privacy = facts["privacy"]
    assert privacy["epsilon"] == epsilon(events, 1e-5)
    assert {row["delta"]: row["epsilon"] for row in privacy["epsilon_at"]}[1e-7] == epsilon(events, 1e-7)
    assert privacy["mu"] == gaussian_mu(events)
    assert privacy["attack"]["true_positive_rate_at"][1]["true_positive_rate"] == true_positive_rate(events, 0.01)
    assert (facts["steps"]["planned"], facts["steps"]["executed"]) == (8, 8)
    assert facts["privacy"]["noise_source"] == "operating system"
    assert facts["privacy"]["clip_rule"] == "FlatClipping(max_grad_norm=1.0)"
    assert all(row["held"] for row in facts["agreement"])
    assert len(facts["agreement"]) >= 7
    assert facts["parameters"] == 4810


@pytest.mark.parametrize(
    "said",
    [
        "central", "one record", "add/remove-one", "not covered", "early stopping", "tuning", "preprocessing", "DP-SGD",
        "saddle-point", "numerical error", "What it rests on", "not checked", "differential privacy", "1e-08",
        "Gaussian privacy", "members found at most", "steps planned", "steps executed", "operating system", "python",
        "SHA-256", "last record", "hushgrad report --check", "standard deviation of the noise",
        "FlatClipping(max_grad_norm=1.0)",
    ],
)  # fmt: skip
def test_the_page_and_the_card_state_what_is_asked_for(finished_run, tmp_path, said):
    write_report(finished_run, tmp_path)
    assert said in (tmp_path / PAGE).read_text()
    card = (tmp_path / CARD).read_text().replace("\\", "")
    assert said in card


def test_what_epsilon_does_not_cover_is_not_shown_unless_asked_for(finished_run, tmp_path):
    facts = write_report(finished_run, tmp_path / "a")["facts"]
    assert all(set(point) == {"step", "test_accuracy", "epsilon"} for point in facts["curves"])
    facts = write_report(finished_run, tmp_path / "b", uncovered=True)["facts"]
    assert all({"loss", "train_accuracy"} <= set(point) for point in facts["curves"])
    assert not wrong(finished_run, tmp_path / "b")


def test_an_untouched_report_holds_in_every_number(run_folder, tmp_path):
    write_report(run_folder, tmp_path / "out")
    checks = check_report(run_folder, tmp_path / "out")
    assert len(checks) > 100
    assert all(check.held for check in checks)


def numbers_in(value, place=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers_in(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers_in(inner, (*place, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place


def test_a_number_that_was_changed_in_the_json_on_the_page_or_in_the_model_card_is_found(finished_run, tmp_path):
    """Guarantee: a number that was changed in the JSON, on the page or in the model card is found."""
    report = write_report(finished_run, tmp_path)
    places = list(numbers_in(report["facts"]))
    assert len(places) > 60
    fresh = files.gather_facts(finished_run, name=report["facts"]["name"], uncovered=False)
    for place in places:
        changed = json.loads(json_text(report["facts"], indent=None))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = inner[place[-1]] * 1.001 + math.copysign(0.001, inner[place[-1]])
        found = [said for said, held in files._compare(changed, fresh) if not held]
        assert len(found) == 1, place
    for file in (PAGE, CARD):
        before = (tmp_path / file).read_text()
        (tmp_path / file).write_text(before.replace("ε = ", "ε = 0", 1))
        assert wrong(finished_run, tmp_path) == [f"{file}: what the JSON gives"]
        (tmp_path / file).write_text(before)
    assert not wrong(finished_run, tmp_path)


def test_a_changed_json_fails_the_check_of_the_whole(finished_run, tmp_path):
    report = write_report(finished_run, tmp_path)
    report["facts"]["privacy"]["epsilon"] = 0.1
    (tmp_path / DATA).write_text(json_text(report, indent=2))
    assert wrong(finished_run, tmp_path) == [
        f"{DATA}: privacy.epsilon",
        f"{PAGE}: what the JSON gives",
        f"{CARD}: what the JSON gives",
    ]


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (
            "summary.json",
            lambda text: text.replace('"epsilon": ', '"epsilon": 9'),
            "the files agree: ε in summary.json",
        ),
        (
            "summary.json",
            lambda text: text.replace('"steps": 8', '"steps": 7'),
            "steps in summary.json and in the ledger",
        ),
        ("metrics.jsonl", lambda text: "\n".join(text.splitlines()[:-1]), "result.test_accuracy"),
    ],
)
def test_a_runs_file_that_was_changed_is_found(run_folder, tmp_path, file, change, said):
    write_report(run_folder, tmp_path / "out")
    path = run_folder / file
    path.write_text(change(path.read_text()))
    assert any(said in what for what in wrong(run_folder, tmp_path / "out"))


def test_a_changed_ledger_is_refused(run_folder, tmp_path):
    write_report(run_folder, tmp_path / "out")
    ledger = run_folder / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"noise_multiplier":3.0', '"noise_multiplier":9.0'))
    with pytest.raises(LedgerError):
        check_report(run_folder, tmp_path / "out")


def test_an_ordinary_run_is_reported_as_not_private(tmp_path):
    config = replace(suggested_run("digits", privacy=None), batch_size=400, epochs=1)
    run(config, tmp_path / "run")
    write_report(tmp_path / "run", tmp_path / "out")
    assert "NOT PRIVATE" in (tmp_path / "out" / PAGE).read_text()
    card = (tmp_path / "out" / CARD).read_text()
    assert "**NOT PRIVATE**" in card
    assert "nothing protects what is released" in card
    assert "is protected" not in card
    (picture,) = re.findall(r"svg\+xml;base64,([A-Za-z0-9+/=]+)", (tmp_path / "out" / PAGE).read_text())
    assert b"logarithmic" not in base64.b64decode(picture)
    assert not wrong(tmp_path / "run", tmp_path / "out")


def test_a_folder_without_a_run_or_a_report_is_refused(finished_run, tmp_path):
    with pytest.raises(InvalidArgumentError, match="holds no run"):
        write_report(tmp_path, tmp_path)
    with pytest.raises(InvalidArgumentError, match="no report to check"):
        check_report(finished_run, tmp_path)


def test_numbers_are_the_same_to_six_digits_and_nothing_else_is_stretched():
    assert same(1.0, 1.0 + 1e-9)
    assert not same(1.0, 1.0 + 1e-5)
    assert same("inf", float("inf"))
    assert not same(True, 1)
    assert not same([1], [1, 2])
    assert not same({"a": 1}, {"b": 1})


def audited(folder, sigma):
    mechanism = DPSGD(
        noise_multiplier=sigma, clipping=FlatClipping(1.0), sampling=PoissonSampling(1.0), expected_batch_size=50
    )
    report = audit(mechanism, delta=1e-5, canaries=100, steps=3)
    (folder / "audit.json").write_text(json.dumps(report.as_json()))
    return report


def test_the_bounds_of_an_audit_stand_beside_their_claims_and_are_checked(run_folder, tmp_path):
    report = audited(run_folder, 3.0)
    facts = write_report(run_folder, tmp_path / "out")["facts"]
    found = {bound["method"]: bound for bound in facts["audit"]["bounds"]}
    for bound in report.bounds:
        assert found[bound.method]["epsilon_at_least"] == bound.epsilon
        assert found[bound.method]["epsilon_claimed"] == report.claimed[bound.method]
    assert "What an audit reached" in (tmp_path / "out" / PAGE).read_text()
    assert "audit.json" in facts["files"]
    assert not wrong(run_folder, tmp_path / "out")
    text = json.loads((run_folder / "audit.json").read_text())
    text["bounds"][0]["epsilon_claimed"] = 99.0
    (run_folder / "audit.json").write_text(json.dumps(text))
    assert wrong(run_folder, tmp_path / "out") == [
        f"{DATA}: agreement[{len(facts['agreement']) - 2}].held",
        f"{DATA}: files.audit.json",
        "the files agree: bounds in audit.json and from what it observed",
    ]


def test_an_audit_of_other_noise_does_not_agree(run_folder, tmp_path):
    audited(run_folder, 1.0)
    write_report(run_folder, tmp_path / "out")
    assert wrong(run_folder, tmp_path / "out") == ["the files agree: σ in audit.json and in the ledger"]


def test_a_damaged_audit_is_refused(run_folder, tmp_path):
    (run_folder / "audit.json").write_text("{")
    with pytest.raises(InvalidArgumentError, match="damaged"):
        write_report(run_folder, tmp_path / "out")
