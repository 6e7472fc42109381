import json
from dataclasses import replace

import pytest

from hushgrad.accounting import Gaussian, epsilon
from hushgrad.accounting.events.release import Release
from hushgrad.accounting.ledger.contract import OBSERVED, OPERATING_SYSTEM, Contract
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import InvalidArgumentError
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.outcome import Callbacks
from hushgrad.study.preparation import Learned, prepare
from hushgrad.study.report.run_facts import run_facts
from hushgrad.study.run import run
from hushgrad.study.tasks import TaskOptions, load_task
from hushgrad.study.tasks.people import People
from hushgrad.study.training import train

SENTENCES = 300


@pytest.fixture
def folder(tmp_path):
    """Sentences of two frequent words and one that nobody else uses."""
    lines = "".join(f"{i % 2}\t{'good' if i % 2 else 'bad'} number{i}\n" for i in range(SENTENCES))
    place = tmp_path / "data"
    place.mkdir()
    (place / "train.tsv").write_text("label\tsentence\n" + lines)
    (place / "dev.tsv").write_text("label\tsentence\n1\tgood\n0\tbad\n")
    return place


def config(folder, vocabulary="counted", own=1.0, **privacy):
    options = TaskOptions(data=folder, classes=("0", "1"), vocabulary=vocabulary, vocabulary_epsilon=own)
    aim = Privacy(max_grad_norm=1.0, **privacy) if privacy else None
    return replace(suggested_run("text", privacy=aim, options=options), batch_size=60, epochs=2)


def test_one_epsilon_covers_a_counted_vocabulary_and_training(folder, tmp_path):
    finished = run(config(folder, target_epsilon=4.0), tmp_path / "out")
    events = read_ledger(finished.directory.ledger).events
    summary = json.loads(finished.directory.summary.read_text())
    (words, once), *training = events
    assert isinstance(words, Release)
    assert once == 1
    assert summary["vocabulary_noise_multiplier"] == words.noise_multiplier
    assert 0.99 < epsilon([(words, 1)], 1e-5) <= 1.0
    assert 3.95 < summary["epsilon"] == epsilon(events, 1e-5) <= 4.0
    assert epsilon(training, 1e-5) < 4.0 < epsilon(training, 1e-5) + 1.0
    assert summary["steps"] == summary["planned_steps"] == sum(count for _, count in training) == 10
    assert "every record in 1 release of a statistic beside the steps" in summary["guarantee"]
    assert summary["taken_on_trust"] == ["read by itself"]
    assert not any("vocabulary" in said for said in summary["outside_the_guarantee"])
    kept = json.loads(finished.directory.vocabulary.read_text())["kept"]
    assert summary["description"].endswith(f"of which {len(kept)} kinds have a number of their own")


def test_at_the_same_noise_a_counted_vocabulary_costs_epsilon(folder, tmp_path):
    with_words = run(config(folder, noise_multiplier=2.0), tmp_path / "a").summary
    without = run(config(folder, "hashed", None, noise_multiplier=2.0), tmp_path / "b").summary
    assert without["epsilon"] < with_words["epsilon"] < without["epsilon"] + 1.0
    assert without["vocabulary_noise_multiplier"] is None


def test_all_figures_of_a_report_on_such_a_run_agree_with_its_files(folder, tmp_path):
    run(config(folder, target_epsilon=4.0), tmp_path / "out")
    facts = run_facts(tmp_path / "out")
    assert [row["what"] for row in facts["agreement"] if not row["held"]] == []
    assert facts["steps"] == {"planned": 10, "executed": 10}
    assert facts["settings"]["vocabulary"] == "counted"
    assert len(facts["privacy"]["noise_multipliers"]) == 1


def test_the_preparation_is_charged_before_anything_is_learned(folder, tmp_path):
    """Guarantee: the preparation is charged in the ledger of training, before anything is learned from the records."""
    ledger = tmp_path / "ledger.jsonl"
    aim = config(folder, target_epsilon=4.0)
    task = load_task("text", aim.options)
    assert task.preparation is not None
    assert int(task.train.tensors[0].abs().max()) == int(task.test.tensors[0].abs().max()) == 0

    def learn(found):
        view = read_ledger(ledger)
        assert view.events == [(found.event, 1)]
        assert view.steps == 0
        assert view.contract.noise_is_secret
        raise OSError("power cut")

    with pytest.raises(OSError, match="power cut"):
        prepare(aim, replace(task, preparation=replace(task.preparation, learned=learn)), ledger)


def test_frequent_words_get_numbers_and_a_word_of_one_sentence_does_not(folder):
    """A false alarm, in which noise lifts more than three such words over 4.28 σ, has probability below 1e-3."""
    aim = config(folder, own=8.0)
    prepared = prepare(aim, load_task("text", aim.options), None)
    good, bad = prepared.task.test.tensors[0][:, 0].tolist()
    assert min(good, bad) > 1
    assert good != bad
    alone = prepared.task.train.tensors[0][:, 1]
    assert int((alone > 1).sum()) <= 3


def test_a_task_that_was_not_prepared_is_refused(folder):
    aim = config(folder, target_epsilon=4.0)
    with pytest.raises(InvalidArgumentError, match="must be prepared"):
        train(aim, load_task("text", aim.options), Callbacks())


def test_a_task_without_a_preparation_is_ready(folder):
    aim = config(folder, "hashed", None, target_epsilon=4.0)
    task = load_task("text", aim.options)
    assert prepare(aim, task, None).task is task


def test_what_is_counted_for_one_record_is_refused_where_epsilon_is_for_people(folder, tmp_path):
    """Guarantee: nothing is charged for a record where a person has several."""
    private = config(folder, target_epsilon=4.0)
    task = load_task("text", private.options)
    of_people = replace(task, people=People.of(["a", "b"] * (len(task.train) // 2), SENTENCES, "who"))
    with pytest.raises(InvalidArgumentError, match="bounded for one record, and ε is to be for people"):
        prepare(private, of_people, tmp_path / "ledger.jsonl")
    assert not (tmp_path / "ledger.jsonl").exists()


def test_an_ordinary_run_counts_without_a_ledger(folder, tmp_path):
    finished = run(config(folder), tmp_path / "out")
    assert not finished.directory.ledger.exists()
    assert finished.directory.vocabulary.exists()
    assert finished.summary["outside_the_guarantee"] == ("everything: this run is not private",)


@pytest.mark.parametrize(("kind", "own"), [("counted", None), ("hashed", 1.0), (None, 1.0)])
def test_a_counted_vocabulary_needs_an_epsilon_and_no_other_takes_one(kind, own):
    with pytest.raises(InvalidArgumentError, match="go together"):
        TaskOptions(vocabulary=kind, vocabulary_epsilon=own)


@pytest.mark.parametrize("own", [0.0, -1.0, float("nan"), float("inf")])
def test_an_epsilon_of_the_vocabulary_must_be_a_number_above_zero(own):
    with pytest.raises(InvalidArgumentError, match="vocabulary_epsilon: must be"):
        TaskOptions(vocabulary="counted", vocabulary_epsilon=own)


def test_the_vocabulary_must_leave_something_for_training(folder):
    with pytest.raises(InvalidArgumentError, match="vocabulary_epsilon must be below the target ε 1,"):
        config(folder, target_epsilon=1.0)


def test_what_a_private_run_prepares_is_paid_for_in_the_ledger_of_training(folder, tmp_path):
    aim = config(folder, target_epsilon=4.0)
    task = load_task("text", aim.options)
    with pytest.raises(InvalidArgumentError, match="is a release, and must be charged"):
        prepare(aim, task, None)
    ready = prepare(aim, task, tmp_path / "ledger.jsonl").task
    for other in (None, tmp_path / "other.jsonl"):
        with pytest.raises(InvalidArgumentError, match="is not charged in this ledger"):
            train(aim, ready, Callbacks(), ledger=other)


def test_noise_on_a_grid_goes_with_a_counted_vocabulary(folder, tmp_path):
    finished = run(config(folder, noise_multiplier=2.0, noise="grid"), tmp_path / "out")
    view = read_ledger(finished.directory.ledger)
    assert view.contract.rounding is not None
    assert view.events[0][0].distance_of_noise > 0
    assert [row["what"] for row in run_facts(tmp_path / "out")["agreement"] if not row["held"]] == []


def test_words_that_were_counted_again_after_a_crash_are_paid_for_twice(folder, tmp_path):
    """The charge is on disk, and the process dies before it knows the words."""
    aim = config(folder, target_epsilon=4.0)
    ledger = tmp_path / "ledger.jsonl"
    prepare(aim, load_task("text", aim.options), ledger)
    ready = prepare(aim, load_task("text", aim.options), ledger).task
    _, outcome = train(aim, ready, Callbacks(), ledger=ledger)
    events = read_ledger(ledger).events
    assert [count for _, count in events] == [2, 10]
    assert 3.95 < outcome.spent.guarantee.epsilon == epsilon(events, 1e-5) <= 4.0
    assert (outcome.steps, outcome.lost_steps) == (10, 0)


def test_a_run_whose_vocabulary_an_earlier_version_charged_as_a_step_does_not_go_on(folder, tmp_path):
    aim = config(folder, target_epsilon=4.0)
    ledger = tmp_path / "ledger.jsonl"
    with Ledger(ledger, contract=Contract(OBSERVED, OPERATING_SYSTEM, population=SENTENCES)) as account:
        account.charge(Gaussian(3.7))
    before = ledger.read_bytes()
    with pytest.raises(InvalidArgumentError, match="where an earlier version charged it as a step"):
        prepare(aim, load_task("text", aim.options), ledger, Learned(vocabulary=(1, 2, 3)))
    assert ledger.read_bytes() == before
