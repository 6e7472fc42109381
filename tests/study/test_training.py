import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import DatasetError, InvalidArgumentError
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.outcome import Callbacks
from hushgrad.study.run import run
from hushgrad.study.scoring import score
from hushgrad.study.tasks import Task, TaskOptions
from hushgrad.study.training import train


@pytest.fixture(scope="module")
def task():
    """Return a task of 60 training and 20 test points in the plane, two classes, far apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    inputs = torch.randn(80, 2, generator=generator) + 6.0 * labels[:, None] - 3.0
    train_set, test_set = TensorDataset(inputs[:60], labels[:60]), TensorDataset(inputs[60:], labels[60:])
    return Task("digits", "points", train_set, test_set, ("a", "b"))


def config(privacy, **changes):
    settings = {"batch_size": 20, "epochs": 3, "hidden_sizes": (4,), "threads": 1, **changes}
    return replace(suggested_run("digits", privacy=privacy), **settings)


def private(noise_multiplier=1.0, **more):
    return Privacy(**{"noise_multiplier": noise_multiplier, "max_grad_norm": 1.0, **more})


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_an_ordinary_run_is_fixed_by_its_seed(task):
    first, second, other = (train(config(None, seed=seed), task, Callbacks())[0] for seed in (1, 1, 2))
    assert same(first, second)
    assert not same(first, other)


def test_the_seed_does_not_fix_a_private_runs_noise(task):
    torch.manual_seed(0)
    first = train(config(private()), task, Callbacks())[0]
    torch.manual_seed(0)
    second = train(config(private()), task, Callbacks())[0]
    assert not same(first, second)


def test_an_ordinary_run_states_no_epsilon(task):
    _, outcome = train(config(None), task, Callbacks())
    assert outcome.status == "completed"
    assert outcome.spent is None
    assert not outcome.private
    assert {measurement.epsilon for measurement in outcome.measurements} == {None}


@pytest.mark.parametrize("loss_reduction", ["mean", "sum"])
@pytest.mark.parametrize("max_physical_batch_size", [None, 7])
def test_a_private_run_charges_each_logical_step_once(task, tmp_path, loss_reduction, max_physical_batch_size):
    settings = config(private(), loss_reduction=loss_reduction, max_physical_batch_size=max_physical_batch_size)
    _, outcome = train(settings, task, Callbacks(), ledger=tmp_path / "ledger.jsonl")
    assert outcome.steps == outcome.planned_steps == 9
    assert sum(count for _, count in read_ledger(tmp_path / "ledger.jsonl").events) == 9
    assert outcome.spent.sampling_rate == pytest.approx(20 / 60)
    assert outcome.measurements[-1].epsilon == outcome.spent.guarantee.epsilon > 0


@pytest.mark.parametrize("clipping", ["automatic", "per-layer:noise=least", "quantile"])
def test_a_run_is_charged_alike_whatever_its_clip_rule(task, tmp_path, clipping):
    settings = config(private(clipping=clipping))
    _, outcome = train(settings, task, Callbacks(), ledger=tmp_path / "ledger.jsonl")
    _, flat = train(config(private()), task, Callbacks())
    assert outcome.spent.guarantee.epsilon == flat.spent.guarantee.epsilon
    assert read_ledger(tmp_path / "ledger.jsonl").contract.clipping == settings.privacy.clip_rule(20).describe()


def test_epsilon_only_grows_and_every_epoch_is_tested(task):
    _, outcome = train(config(private()), task, Callbacks())
    epsilons = [measurement.epsilon for measurement in outcome.measurements]
    assert epsilons == sorted(epsilons)
    assert sum(measurement.test_accuracy is not None for measurement in outcome.measurements) == 3


def test_a_target_epsilon_is_met_at_the_end(task):
    _, outcome = train(config(private(None, target_epsilon=2.0, delta=1e-3)), task, Callbacks())
    assert 1.9 < outcome.spent.guarantee.epsilon <= 2.0


def test_no_noise_says_not_private_wherever_epsilon_is_shown(task):
    """Guarantee: σ = 0 gives an infinite ε and the words NOT PRIVATE."""
    _, outcome = train(config(private(0.0)), task, Callbacks())
    assert not outcome.private
    assert "NOT PRIVATE" in str(outcome.spent.guarantee)
    assert outcome.measurements[-1].epsilon == float("inf")


@pytest.mark.parametrize("privacy", [None, private(1.0)])
def test_far_apart_points_are_learned(task, privacy):
    model, outcome = train(config(privacy, epochs=6, learning_rate=0.5, momentum=0.0), task, Callbacks())
    assert outcome.test_accuracy > 0.9
    assert outcome.test_accuracy == score(model, task.test, "cpu").accuracy


def test_a_requested_stop_ends_the_run_after_the_running_step(task):
    done = []
    callbacks = Callbacks(on_step=done.append, stop_requested=lambda: len(done) == 4)
    _, outcome = train(config(private()), task, callbacks)
    assert (outcome.status, outcome.steps, outcome.planned_steps) == ("interrupted", 4, 9)
    assert outcome.spent.guarantee.steps == 4
    assert outcome.test_accuracy is not None


def test_a_long_run_is_tested_a_hundred_times_and_at_its_end(task):
    _, outcome = train(config(None, epochs=350, batch_size=60), task, Callbacks())
    tested = [measurement.step for measurement in outcome.measurements if measurement.test_accuracy is not None]
    assert tested == [*range(3, 350, 3), 350]
    assert (outcome.status, outcome.steps) == ("completed", 350)


def test_a_stop_requested_in_the_last_step_leaves_a_completed_run(task):
    _, outcome = train(config(private()), task, Callbacks(stop_requested=lambda: True))
    assert (outcome.status, outcome.steps) == ("interrupted", 1)
    _, outcome = train(config(private(), epochs=1, batch_size=60), task, Callbacks(stop_requested=lambda: True))
    assert (outcome.status, outcome.steps) == ("completed", 1)


def test_the_model_that_comes_back_is_an_ordinary_one(task):
    model, _ = train(config(private()), task, Callbacks())
    torch.nn.functional.cross_entropy(model(task.train.tensors[0]), task.train.tensors[1]).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_number_of_threads_is_given_back(task):
    before = torch.get_num_threads()
    train(config(None, threads=before + 1), task, Callbacks())
    assert torch.get_num_threads() == before


def test_a_batch_larger_than_the_data_is_refused(task):
    for privacy in (None, private()):
        with pytest.raises(DatasetError, match="at most the 60 training examples, got 61"):
            train(config(privacy, batch_size=61), task, Callbacks())


def test_a_delta_of_one_over_n_is_refused(task):
    with pytest.raises(InvalidArgumentError, match=r"delta: must be below 1/N = 0\.0167"):
        train(config(private(delta=1 / 60)), task, Callbacks())


DATA = os.environ.get("HUSHGRAD_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="HUSHGRAD_DATA names no data folder")


@pytest.mark.data
@pytest.mark.slow
@needs_data
@pytest.mark.parametrize(
    ("name", "folder", "classes", "model", "changes", "privacy", "least"),
    [
        ("mnist", "mnist", ("0", "1"), "cnn", {"batch_size": 256, "augmentations": 0}, private(5.0), 0.97),
        ("mnist", "mnist", None, None, {}, private(None, target_epsilon=1.0), 0.935),
        ("mnist", "mnist", None, None, {}, private(None, target_epsilon=3.0), 0.953),
        ("csv", "adult", None, None, {}, private(None, target_epsilon=3.0), 0.84),
        ("digits", None, None, None, {}, private(None, target_epsilon=3.0), 0.88),
        ("digits", None, None, "scatter-linear", {}, private(None, target_epsilon=3.0), 0.9),
    ],
)
def test_the_suggested_settings_reach_the_stated_accuracy(
    tmp_path, name, folder, classes, model, changes, privacy, least
):
    """The least accuracies lie below the worst of the runs of docs/training.md."""
    options = TaskOptions(data=Path(DATA or "") / folder if folder else None, classes=classes)
    settings = replace(suggested_run(name, privacy=privacy, options=options, model=model), **changes)
    assert run(settings, tmp_path / "out").outcome.test_accuracy >= least
