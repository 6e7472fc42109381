"""Runs that draw otherwise than by Poisson sampling, or whose noise is correlated: planned, charged and resumed so."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset

from hushgrad import DPSGD, FlatClipping
from hushgrad.accounting import epsilon
from hushgrad.accounting.events.cyclic_poisson import CyclicPoisson
from hushgrad.accounting.events.fixed_size import FixedSizeSampled
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.events.random_allocation import RandomAllocation
from hushgrad.accounting.events.truncated_poisson import TruncatedPoisson
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import InvalidArgumentError, UnprovenMechanismError
from hushgrad.sampling.choice import NAMES, scheme_named
from hushgrad.sampling.truncated_poisson import TruncatedPoissonSampling
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.outcome import Callbacks
from hushgrad.study.preparation import check_budget, prepare
from hushgrad.study.report.run_facts import run_facts
from hushgrad.study.resuming import resume
from hushgrad.study.run import Reporter, run
from hushgrad.study.sweep.plan import Grid, Subject, config_of, make_plan
from hushgrad.study.tasks import Task, TaskOptions, load_task
from hushgrad.study.training import train

N, B, STEPS, EPOCHS, DELTA = 290, 100, 3, 2, 1e-3
HOW = {
    "poisson": {},
    "balls-in-bins": {"sampling": "balls-in-bins"},
    "fixed-size": {"sampling": "fixed-size"},
    "truncated": {"max_batch_size": 110},
}


def charged(how, sigma):
    """Return what two passes of such a run cost, written down by hand."""
    return {
        "poisson": [(PoissonSampled(B / N, sigma), EPOCHS * STEPS)],
        "balls-in-bins": [(RandomAllocation(STEPS, sigma, index), STEPS) for index in range(EPOCHS)],
        "fixed-size": [(FixedSizeSampled(B, N, sigma), EPOCHS * STEPS)],
        "truncated": [(TruncatedPoisson(B / N, sigma, N, 110), EPOCHS * STEPS)],
    }[how]


@pytest.fixture(scope="module")
def task():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N + 30) % 2
    inputs = torch.randn(N + 30, 2, generator=generator) + labels[:, None]
    sets = TensorDataset(inputs[:N], labels[:N]), TensorDataset(inputs[N:], labels[N:])
    return Task("digits", "points", *sets, ("a", "b"))


def config(**privacy):
    aim = Privacy(**{"max_grad_norm": 1.0, "delta": DELTA, **privacy})
    settings = {"batch_size": B, "epochs": EPOCHS, "hidden_sizes": (4,), "threads": 1}
    return replace(suggested_run("digits", privacy=aim), **settings)


def test_each_sampling_that_has_a_name_is_among_those_of_this_test():
    assert set(NAMES) <= {how.get("sampling", "poisson") for how in HOW.values()}


@pytest.mark.parametrize("how", HOW)
def test_a_run_is_calibrated_and_charged_as_a_plain_session_with_that_sampling(task, tmp_path, how):
    ledger = tmp_path / "ledger.jsonl"
    _, outcome = train(config(target_epsilon=2.0, **HOW[how]), task, Callbacks(), ledger=ledger)
    scheme = (
        TruncatedPoissonSampling(B / N, N, 110) if how == "truncated" else scheme_named(how, B, N, steps_per_pass=STEPS)
    )
    plain = DPSGD(
        noise_multiplier=1.0,
        clipping=FlatClipping(1.0),
        sampling=scheme,
        expected_batch_size=scheme.expected_batch_size(N),
        steps=EPOCHS * STEPS,
        passes=EPOCHS if how == "balls-in-bins" else None,
    ).calibrate(epsilon=2.0, delta=DELTA)
    sigma, view = outcome.spent.noise_multiplier, read_ledger(ledger)
    assert sigma == plain.noise_multiplier
    assert view.events == charged(how, sigma)
    assert 1.99 < outcome.spent.guarantee.epsilon == epsilon(view.events, DELTA) <= 2.0
    assert outcome.spent.guarantee.adjacency == ("replace-one" if how == "fixed-size" else "add/remove-one")
    assert view.contract.expected_batch_size == outcome.spent.expected_batch_size == plain.expected_batch_size
    assert (outcome.steps, outcome.lost_steps, outcome.status) == (6, 0, "completed")


@pytest.mark.parametrize("how", HOW)
def test_a_budget_holds_for_what_the_run_is_charged_as(task, how):
    """The figure that refuses a run is that of its own events."""
    spent = epsilon(charged(how, 2.0), DELTA)
    check_budget(config(noise_multiplier=2.0, max_epsilon=spent * 1.001, **HOW[how]), task)
    with pytest.raises(InvalidArgumentError, match="beyond max_epsilon"):
        check_budget(config(noise_multiplier=2.0, max_epsilon=spent * 0.99, **HOW[how]), task)


@pytest.mark.parametrize("noise", ["banded", "best"])
def test_correlated_noise_is_one_block_over_all_passes(task, tmp_path, noise):
    ledger = tmp_path / "ledger.jsonl"
    _, outcome = train(config(target_epsilon=2.0, noise=noise), task, Callbacks(), ledger=ledger)
    view, sigma = read_ledger(ledger), outcome.spent.noise_multiplier
    if noise == "banded":
        assert view.events == [(CyclicPoisson(2 * B / N, sigma, 2, 0), 6)]
        assert "BandedStrategy" in view.contract.strategy
    else:  # of six steps at this rate: less than a tenth is saved
        assert view.events == [(PoissonSampled(B / N, sigma), 6)]
    assert 1.99 < outcome.spent.guarantee.epsilon == epsilon(view.events, DELTA) <= 2.0


# After a crash -------------------------------------------------------------------------------------------------------

DIGITS = {"batch_size": 100, "epochs": 3, "threads": 1}  # of 0 and 1: three steps in a pass


class PowerCutError(BaseException):
    """Ends a run without a word."""


def resumed(out, **privacy):
    """Cut a run off in its fifth step, of which the checkpoint holds four, and resume it."""
    aim = Privacy(**{"max_grad_norm": 1.0, "delta": DELTA, **privacy})
    settings = replace(
        suggested_run("digits", privacy=aim, options=TaskOptions(classes=("0", "1"))), hidden_sizes=(4,), **DIGITS
    )

    def cut(step):
        if step == 5:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        run(settings, out, Reporter(on_step=cut))
    summary = resume(out).summary
    facts = run_facts(out)
    assert [row["what"] for row in facts["agreement"] if not row["held"]] == []
    assert facts["privacy"]["epsilon"] == summary["epsilon"]
    assert (summary["lost_steps"], summary["status"]) == (1, "completed")
    events = read_ledger(out / "ledger.jsonl").events
    return summary, [(event.data_pass, event.in_block, count) for event, count in events]


@pytest.mark.parametrize(
    ("privacy", "steps", "events"),
    [
        # Two passes were begun; the third one goes from step 4 to 7.
        ({"target_epsilon": 3.0, "sampling": "balls-in-bins"}, 7, [(0, None, 3), (1, None, 2), (2, None, 3)]),
        (
            {"noise_multiplier": 2.0, "sampling": "balls-in-bins"},
            9,
            [(0, None, 3), (1, None, 2), (2, None, 3), (3, None, 2)],
        ),
        pytest.param({"target_epsilon": 3.0, "sampling": "fixed-size"}, 8, [(None, None, 9)], marks=pytest.mark.slow),
        pytest.param({"target_epsilon": 3.0, "max_batch_size": 110}, 8, [(None, None, 9)], marks=pytest.mark.slow),
        # Nine steps of two bands are five turns; a block of five takes three, so that two are left, of four steps.
        ({"target_epsilon": 3.0, "noise": "banded"}, 8, [(None, 0, 5), (None, 1, 4)]),
    ],
)
def test_a_run_that_was_cut_off_goes_on_within_its_plan(tmp_path, privacy, steps, events):
    summary, found = resumed(tmp_path / "run", **privacy)
    assert summary["steps"] == steps
    assert found == events
    if "target_epsilon" in privacy:
        assert 2.9 < summary["epsilon"] <= 3.0


# What does not go together -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("privacy", "error", "match"),
    [
        ({"sampling": "shuffled"}, InvalidArgumentError, "sampling"),
        ({"sampling": "fixed-size", "max_batch_size": 9}, InvalidArgumentError, "max_batch_size"),
        ({"sampling": "balls-in-bins", "spare_steps": 2}, InvalidArgumentError, "Plan one epoch more"),
        ({"noise": "buffered"}, InvalidArgumentError, "Take banded, or best"),
        ({"noise": "pink"}, InvalidArgumentError, "noise: must be one of"),
        ({"noise": "banded", "sampling": "fixed-size"}, InvalidArgumentError, "does not go with FixedSizeSampling"),
        ({"noise": "best", "max_batch_size": 9}, InvalidArgumentError, "does not go with TruncatedPoissonSampling"),
        ({"noise": "banded", "target_epsilon": None, "noise_multiplier": 1.0}, InvalidArgumentError, "Give target"),
        ({"noise": "banded", "clipping": "quantile"}, UnprovenMechanismError, "not known"),
        ({"noise": "grid", "clipping": "quantile"}, UnprovenMechanismError, "not known"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_data_are_read(privacy, error, match):
    with pytest.raises(error, match=match) as caught:
        Privacy(**{"max_grad_norm": 1.0, "target_epsilon": 2.0, **privacy})
    assert caught.value.cure


# With a counted vocabulary, and in sweeps ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"sampling": "fixed-size"}, {"sampling": "balls-in-bins"}, {"noise": "banded"}])
def test_a_counted_vocabulary_is_charged_under_the_relation_of_training(tmp_path, how):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("train", 200), ("dev", 20)):
        lines = [f"{row % 2}\t{'good' if row % 2 else 'bad'} film" for row in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["label\tsentence", *lines]) + "\n")
    options = TaskOptions(data=folder, classes=("0", "1"), vocabulary="counted", vocabulary_epsilon=1.0)
    privacy = Privacy(target_epsilon=4.0, max_grad_norm=1.0, delta=DELTA, **how)
    aim = replace(suggested_run("text", privacy=privacy, options=options), batch_size=50, epochs=1)
    ledger = tmp_path / "ledger.jsonl"
    ready = prepare(aim, load_task("text", options), ledger).task
    _, outcome = train(aim, ready, Callbacks(), ledger=ledger)
    (words, _), *trained = read_ledger(ledger).events
    assert not words.is_step
    assert {event.adjacency for event, _ in trained} == {words.adjacency}
    assert epsilon([(words, 1)], DELTA) <= 1.0
    assert 3.9 < outcome.spent.guarantee.epsilon <= 4.0
    assert (outcome.steps, outcome.lost_steps) == (4, 0)


def test_runs_of_a_sweep_have_the_sampling_that_it_names():
    settings = {"sampling": "balls-in-bins", "clipping": "automatic"}
    plan = make_plan("a", (Subject("a", task="digits", settings=settings),), Grid(noise_multipliers=(1.0,), seeds=(0,)))
    ordinary, private = map(config_of, plan.runs)
    assert ordinary.privacy is None
    assert (private.privacy.sampling, private.privacy.clipping) == ("balls-in-bins", "automatic")
