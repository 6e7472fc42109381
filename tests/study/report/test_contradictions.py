"""Files of a run that contradict each other, and files that differ because a run was killed, goes on or continued."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
from click.testing import CliRunner

from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.records import encode
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.cli.main import main
from hushgrad.errors import HushgradError, InvalidArgumentError
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.report.comparison import contradictions
from hushgrad.study.report.files import CARD, DATA, PAGE, write_report
from hushgrad.study.report.run_facts import run_facts
from hushgrad.study.run import Reporter, run

ALARM = "FILES CONTRADICT EACH OTHER"


def private(**changes):
    noise = {"noise_multiplier": changes.pop("noise_multiplier", 3.0), "max_grad_norm": 1.0}
    return replace(suggested_run("digits", privacy=Privacy(**noise)), **{"batch_size": 400, "epochs": 2, **changes})


@pytest.fixture(scope="session")
def left_behind(tmp_path_factory):
    """The folder of a run of 8 steps as it was during step 6 (as SIGKILL would have left it), and at its end."""
    base = tmp_path_factory.mktemp("contradictions")

    def keep(step):
        if step == 6:
            shutil.copytree(base / "whole", base / "killed")

    run(private(), base / "whole", Reporter(on_step=keep))
    return base


@pytest.fixture(scope="session")
def of_another_run(tmp_path_factory):
    """The ledger of another run with the same settings."""
    return run(private(seed=1), tmp_path_factory.mktemp("contradictions") / "b").directory.ledger


@pytest.fixture
def folder(left_behind, tmp_path):
    return shutil.copytree(left_behind / "whole", tmp_path / "run")


def edit(folder, **changes):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary |= {key: change(summary[key]) if callable(change) else change for key, change in changes.items()}
    path.write_text(json.dumps({key: value for key, value in summary.items() if value is not ...}))


def as_written_by_an_older_version(folder):
    edit(folder, ledger=..., model_digest=...)
    return folder


def edit_metrics(folder, line, **changes):
    path = folder / "metrics.jsonl"
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    rows[line] |= {key: change(rows[line][key]) for key, change in changes.items()}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit_model(folder, **words):
    path = folder / "model.safetensors"
    with safetensors.safe_open(path, "pt") as opened:
        words = opened.metadata() | words
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, metadata=words)


def edit_values(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(folder, *, charges=0):
    """Cut the ledger's last record, or all from the last `charges` charges on."""
    path = folder / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    last = len(lines) - 1
    while charges:
        charges -= '"kind":"charge"' in lines[last]
        last -= bool(charges)
    path.write_text("".join(lines[:last]))


def forge(folder, change):
    """Write the ledger anew with other contents and right hashes."""
    path = folder / "ledger.jsonl"
    previous, lines = "0" * 64, []
    for text in path.read_text().splitlines():
        record = change(json.loads(text))
        kind, seq = record.pop("kind"), record.pop("seq")
        body = {key: value for key, value in record.items() if key not in ("previous", "hash")}
        line, previous = encode(kind, seq, previous, body)
        lines.append(line)
    path.write_bytes(b"".join(lines))


def other_noise(record):
    return record | {"event": record["event"] | {"noise_multiplier": 9.0}} if record["kind"] == "charge" else record


def other_contract(**changes):
    def change(record):
        return record | {"contract": record["contract"] | changes} if record["kind"] == "header" else record

    return change


def epsilon_of(folder):
    return json.loads((folder / "summary.json").read_text())["epsilon"]


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
