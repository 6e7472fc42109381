"""Budgets end training at the step that was computed, with and without crashes; schedules are charged step by step."""

from __future__ import annotations

import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from hushgrad import DPSGD, Budget, DisjointBatches, FlatClipping, PoissonSampling, PrivacyEngine, Session, privatize
from hushgrad.accounting import PoissonSampled, epsilon, read_ledger
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.errors import (
    BatchStructureError,
    BudgetExhaustedError,
    ContractChangedError,
    CrossSampleLeakError,
    InvalidArgumentError,
    LedgerError,
    NotEstablishedError,
    ProtocolError,
    UnreachableTargetError,
)
from hushgrad.randomness import KeyStream
from hushgrad.sampling.torch_loader import LoadingOptions

PLAN = DPSGD(
    noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4.0
)  # fmt: skip


def attach(mechanism: DPSGD, ledger: Path | None = None, **options) -> tuple[torch.optim.Optimizer, Session]:  # type: ignore[no-untyped-def]
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return optimizer, privatize(model, optimizer, mechanism, ledger=ledger, **options)


def updates(optimizer: torch.optim.Optimizer, session: Session, most: int = 10**6) -> int:
    """Train on empty draws until the budget is spent, or `most` steps; return the number of updates."""
    for done in range(most):
        session.backward(torch.zeros(0))
        try:
            optimizer.step()
        except BudgetExhaustedError:
            return done
    return most


def a_plan(chance: random.Random) -> tuple[DPSGD, Budget, int]:
    """Return a random plan, a budget for it, and the step at which the budget must end."""
    while True:
        rate, noise = 10 ** chance.uniform(-1.7, -0.3), 10 ** chance.uniform(0.05, 0.7)
        steps, delta = chance.randint(15, 40), 10 ** chance.uniform(-9, -4)
        at, beyond = (epsilon([(PoissonSampled(rate, noise), count)], delta) for count in (steps, steps + 1))
        if 0 < at < beyond:
            mechanism = DPSGD(
                noise_multiplier=noise, clipping=FlatClipping(1.0), sampling=PoissonSampling(rate),
                expected_batch_size=4.0,
            )  # fmt: skip
            return mechanism, Budget(at + (beyond - at) * chance.random(), delta), steps


@pytest.mark.parametrize("plans", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_random_plans_stop_at_exactly_the_computed_step_with_and_without_crashes(
    plans: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: a budget ends training at exactly the last step that fits into it, the same step every time.

    Also after a crash and a resume: with leases of 4, what was updated is at least all steps but 3 for each crash.
    """
    monkeypatch.setenv("HUSHGRAD_STATE", "off")  # this process lives on, and would know what a crash leaves for old
    chance = random.Random(7)
    for number in range(plans):
        mechanism, budget, steps = a_plan(chance)
        optimizer, session = attach(mechanism, budget=budget)
        assert updates(optimizer, session) == steps == session.steps
        assert session.steps_left == 0
        session.close()

        path, done, crashes = tmp_path / f"{number}.jsonl", 0, 0
        while True:
            optimizer, session = attach(mechanism, path, budget=budget, lease=4)
            part = chance.randint(0, steps) if crashes < 2 else 10**6
            made = updates(optimizer, session, part)
            done += made
            if made < part:
                assert session.steps == steps
                session.close()
                break
            crashes += 1
            if path.exists():
                # What a process leaves that dies here: the file as it is, with the lease not returned.
                shutil.copy(path, path.with_suffix(".left"))
                session.close()
                path.with_suffix(".left").replace(path)
        assert read_ledger(path).steps == steps
        assert steps - 3 * crashes <= done <= steps


def test_an_engine_with_a_budget_stops_and_resumes_at_it(tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(40, 3), torch.randn(40, 1))
    made = 0
    for _ in range(2):
        engine = PrivacyEngine(ledger=tmp_path / "ledger.jsonl", lease=3)
        model = nn.Linear(3, 1)
        model, optimizer, loader = engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=torch.utils.data.DataLoader(data, batch_size=8),
            noise_multiplier=1.5,
            max_grad_norm=1.0,
            max_epsilon=3.0,
            max_delta=1e-5,
        )
        criterion = engine.per_example(nn.MSELoss())

        def train_without_end() -> None:
            nonlocal made
            for x, y in (batch for _ in range(100) for batch in loader):  # noqa: B023
                criterion(model(x), y).backward()  # noqa: B023
                optimizer.step()  # noqa: B023
                made += 1

        with pytest.raises(BudgetExhaustedError, match=r"fit into epsilon = 3 at delta = 1e-05"):
            train_without_end()
        steps = engine.session.steps
        assert made == steps
        assert engine.get_epsilon(1e-5) <= 3.0 < epsilon([(PoissonSampled(0.2, 1.5), steps + 1)], 1e-5)
        engine.session.close()


def test_a_budget_counts_what_the_ledger_held_before(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    optimizer, session = attach(PLAN, path)
    updates(optimizer, session, 5)
    session.close()
    louder = replace(PLAN, noise_multiplier=2.0)
    optimizer, session = attach(louder, path, budget=Budget(3.0, 1e-5))
    more = updates(optimizer, session)
    before = (PoissonSampled(0.1, 1.0), 5)
    assert epsilon([before, (PoissonSampled(0.1, 2.0), more)], 1e-5) <= 3.0
    assert epsilon([before, (PoissonSampled(0.1, 2.0), more + 1)], 1e-5) > 3.0
    session.close()
    _, session = attach(louder, path, budget=Budget(0.5, 1e-5))
    with pytest.raises(UnreachableTargetError, match="has no room for one more step"):
        session.backward(torch.zeros(0))


def test_a_budget_for_the_callers_own_batches_is_in_passes() -> None:
    mechanism = DPSGD(
        noise_multiplier=4.0, clipping=FlatClipping(1.0), sampling=DisjointBatches(), expected_batch_size=4.0
    )
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism, budget=Budget(2.5, 1e-5))
    loader = session.batches(TensorDataset(torch.randn(8, 2)), batches=[range(4), range(4, 8)])
    passes = 0

    def train_without_end() -> None:
        nonlocal passes
        while True:
            for (x,) in loader:
                session.backward(model(x).squeeze(1))
                optimizer.step()
            passes += 1

    with pytest.raises(BudgetExhaustedError):
        train_without_end()
    assert session.steps == 2 * passes
    assert session.epsilon(1e-5) <= 2.5
    assert epsilon([(mechanism.event(i), 1) for i in range(passes + 1)], 1e-5) > 2.5


def test_a_budget_that_is_none_is_refused() -> None:
    for bad in (2.0, (2.0, 1e-5)):
        with pytest.raises(InvalidArgumentError, match="Budget"):
            attach(PLAN, budget=bad)
    with pytest.raises(InvalidArgumentError, match="lease"):
        attach(PLAN, lease=0)
    with pytest.raises(InvalidArgumentError):
        Budget(0.0, 1e-5)
    with pytest.raises(InvalidArgumentError):
        Budget(1.0, 1.0)


# Schedules ---------------------------------------------------------------------------------------------------------

SCHEDULED = DPSGD(
    noise_multiplier=2.0,
    clipping=FlatClipping(0.5),
    sampling=PoissonSampling(0.1),
    expected_batch_size=4.0,
    noise_schedule=(1.0, 1.0, 0.5, 0.75),
    clip_schedule=(1.0, 2.0, 2.0, 4.0),
)


def test_a_schedule_is_charged_step_by_step_and_ends_training(tmp_path: Path) -> None:
    """Guarantee: the noise that runs in a step and the noise that is charged for it come from the same value."""
    path = tmp_path / "ledger.jsonl"
    optimizer, session = attach(SCHEDULED, path, lease=3)
    assert updates(optimizer, session, 3) == 3
    session.close()
    optimizer, session = attach(SCHEDULED, path, lease=3)
    assert updates(optimizer, session) == 1
    session.close()
    charged = read_ledger(path).events
    assert charged == SCHEDULED.composition()
    assert charged == [(PoissonSampled(0.1, 2.0), 2), (PoissonSampled(0.1, 1.0), 1), (PoissonSampled(0.1, 1.5), 1)]
    assert [SCHEDULED.at(i).noise_std for i in range(4)] == [1.0, 2.0, 1.0, 3.0]


def test_every_step_of_a_schedule_has_its_own_clip_norm_and_noise() -> None:
    """The gradient is 100 per example: what comes out without noise is the clip norm of that step."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    quiet = DPSGD(
        noise_multiplier=1e-9, clipping=FlatClipping(0.5), sampling=PoissonSampling(0.1), expected_batch_size=1.0,
        clip_schedule=(1.0, 2.0, 8.0),
    )  # fmt: skip
    session = privatize(model, optimizer, quiet)
    for clip in (0.5, 1.0, 4.0):
        before = model.weight.item()
        session.backward(model(torch.full((1, 1), 100.0)).squeeze(1))
        optimizer.step()
        assert before - model.weight.item() == pytest.approx(clip, rel=1e-4)


def test_noise_of_a_schedule_has_each_steps_standard_deviation() -> None:
    """Two steps of 40,000 values, operating system's key: 5 standard errors, a false alarm below 1e-6."""
    model = nn.Linear(200, 200, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    plan = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=1.0,
        noise_schedule=(1.0, 3.0),
    )  # fmt: skip
    session = privatize(model, optimizer, plan)
    for std in (1.0, 3.0):
        before = model.weight.detach().clone()
        session.backward(torch.zeros(0))
        optimizer.step()
        found = float((model.weight.detach() - before).std())
        assert found == pytest.approx(std, rel=5 / (2 * 40_000) ** 0.5)


def test_another_schedule_does_not_continue_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    optimizer, session = attach(SCHEDULED, path)
    updates(optimizer, session, 3)
    session.close()
    other = DPSGD(
        noise_multiplier=2.0, clipping=FlatClipping(0.5), sampling=PoissonSampling(0.1), expected_batch_size=4.0,
        noise_schedule=(1.0, 0.5, 0.5, 1.0),
    )  # fmt: skip
    _, session = attach(other, path)
    with pytest.raises(ContractChangedError, match="schedule"):
        session.backward(torch.zeros(0))


def test_a_budget_ends_a_schedule_early() -> None:
    long = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4.0,
        noise_schedule=tuple(2.0 - i / 20 for i in range(20)),
    )  # fmt: skip
    budget = Budget(long.epsilon(1e-5) * 0.6, 1e-5)
    optimizer, session = attach(long, budget=budget)
    made = updates(optimizer, session)
    assert epsilon(long.first(made), 1e-5) <= budget.epsilon < epsilon(long.first(made + 1), 1e-5)


def test_calibration_keeps_the_shape_of_a_schedule() -> None:
    plan = replace(PLAN, noise_schedule=(1.0,) * 50 + (0.5,) * 50)
    calibrated = plan.calibrate(epsilon=1.0, delta=1e-5)
    assert calibrated.noise_schedule == plan.noise_schedule
    assert 0.99 < calibrated.epsilon(1e-5) <= 1.0


@pytest.mark.parametrize("factors", [(), (1.0, 0.0), (1.0, -1.0), ("1",), "11", 1.0, (float("nan"),)])
def test_a_bad_schedule_is_refused(factors: object) -> None:
    with pytest.raises(InvalidArgumentError, match="noise_schedule"):
        DPSGD(
            noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4.0,
            noise_schedule=factors,  # type: ignore[arg-type]
        )  # fmt: skip


def test_a_schedule_needs_a_factor_for_every_step_and_an_asked_step() -> None:
    with pytest.raises(InvalidArgumentError, match="each of the 3 steps"):
        DPSGD(
            noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=4.0,
            noise_schedule=(1.0, 1.0), steps=3,
        )  # fmt: skip
    for ask in (lambda: SCHEDULED.noise_std, lambda: SCHEDULED.event(), lambda: SCHEDULED.at(4)):
        with pytest.raises(InvalidArgumentError):
            ask()
    assert PLAN.at(3) is PLAN


def not_all(records: list[tuple[torch.Tensor]]) -> list[torch.Tensor]:
    """Refuse the record that `Breaking` cannot read."""
    values = torch.stack([value for (value,) in records])
    if bool((values == MARK).any()):
        raise OSError("unreadable")
    return [values]


MARK = 77.0


class Breaking(TensorDataset):
    """Record 3 cannot be read."""

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if index == 3:
            raise OSError("unreadable")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("breaks", ["nothing", "the record", "its collate"])
def test_a_loop_goes_on_after_a_batch_that_could_not_be_read_only_if_it_says_so(breaks: str, workers: int) -> None:
    """A loop that catches the error and goes on makes a number of steps that depends on one record."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = replace(PLAN, sampling=PoissonSampling(0.25), expected_batch_size=10.0)
    session = privatize(model, optimizer, plan, key=KeyStream.fixed_for_tests(1))
    options = LoadingOptions(
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        collate_fn=not_all if breaks == "its collate" else None,
    )
    records = torch.randn(40, 2)
    records[3] = MARK if breaks == "its collate" else 0
    loader = session.batches((Breaking if breaks == "the record" else TensorDataset)(records), options=options)
    drawn, failed = 0, 0
    for _ in range(4):
        try:
            for (x,) in loader:
                optimizer.zero_grad()
                session.backward(model(x).square().sum(1))
                optimizer.step()
                drawn += 1
        except (OSError, BatchStructureError):
            failed += 1
            for _ in range(2):
                with pytest.raises(ProtocolError, match="one record decide how many steps run"):
                    next(iter(loader))
            session.discard()
    said = str(session.guarantee(1e-5))
    assert session.steps == drawn
    assert (failed > 0) == (breaks != "nothing")
    if failed:
        assert f"{failed} logical batch{' was' if failed == 1 else 'es were'} discarded" in said
    else:
        assert "discarded" not in said


FOUND = CrossSampleLeakError("the output of one example depends on the others", where="layers.3", cure="Mend it")


def test_after_a_finding_every_figure_of_the_ledger_is_infinite_and_nothing_goes_on(tmp_path: Path) -> None:
    """Guarantee: where any step was charged, every ε, guarantee, report and resume of this ledger says from here on
    that nothing is established.
    """
    path = tmp_path / "run.jsonl"
    optimizer, session = attach(PLAN, path)
    updates(optimizer, session, 3)
    session._parts.probe.on_finding(FOUND)
    assert session.epsilon(1e-5) == math.inf
    said = session.guarantee(1e-5)
    assert said.epsilon == math.inf
    assert said.steps == session.steps == 3
    assert "Nothing is established for any of these steps" in str(said)
    assert str(FOUND).removesuffix(". Mend it") in str(said)
    for go_on in (
        lambda: session.backward(torch.zeros(0)),
        optimizer.step,
        session.end_item,
        lambda: session.loss(torch.zeros(1)),
    ):
        with pytest.raises(NotEstablishedError, match=r"DP301 layers\.3"):
            go_on()
    session._parts.probe.on_finding(FOUND)  # another one adds nothing
    session.discard()
    session.close()
    held = read_ledger(path)
    assert (held.steps, len(held.events)) == (3, 2)
    assert epsilon(held.events, 1e-5) == math.inf
    assert PrivacyEngine(ledger=path).get_epsilon(1e-5) == math.inf
    with pytest.raises(NotEstablishedError, match=r"DP301 layers\.3.*after 3 steps|after 3 steps.*DP301 layers\.3"):
        attach(PLAN, path)


def test_a_ledger_with_a_finding_is_continued_by_nobody(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    optimizer, session = attach(PLAN, path)
    updates(optimizer, session, 3)
    session._parts.probe.on_finding(FOUND)
    session.close()
    with pytest.raises(NotEstablishedError, match="after 3 steps"):
        attach(PLAN, path)
    with pytest.raises(NotEstablishedError):
        Ledger(path, contract=read_ledger(path).contract)
    assert PrivacyEngine(ledger=path).get_epsilon(1e-5) == math.inf


def test_before_any_step_a_finding_is_an_ordinary_refusal(tmp_path: Path) -> None:
    optimizer, session = attach(PLAN, tmp_path / "run.jsonl")
    session._parts.probe.on_finding(FOUND)
    assert updates(optimizer, session, 2) == 2
    assert 0 < session.epsilon(1e-5) < math.inf


def test_a_finding_before_the_first_batch_of_a_resume_ends_the_account_of_the_steps_before_it(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    optimizer, session = attach(PLAN, path, lease=8)
    updates(optimizer, session, 3)
    session.close()
    _, resumed = attach(PLAN, path)
    resumed._parts.probe.on_finding(FOUND)
    assert resumed.epsilon(1e-5) == math.inf
    assert epsilon(read_ledger(path).events, 1e-5) == math.inf


def test_a_finding_inside_a_lease_returns_what_was_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    optimizer, session = attach(PLAN, path, lease=8)
    updates(optimizer, session, 3)
    session._parts.probe.on_finding(FOUND)
    assert read_ledger(path).steps == 3
    assert epsilon(read_ledger(path).events, 1e-5) == math.inf


def test_a_finding_that_the_disk_refuses_is_said_and_counts_in_this_process(tmp_path: Path) -> None:
    """Guarantee: where any step was charged, every ε, guarantee, report and resume of this ledger says from here on
    that nothing is established, in this process also where the disk refuses.
    """
    path = tmp_path / "run.jsonl"
    optimizer, session = attach(PLAN, path)
    updates(optimizer, session, 3)
    path.rename(tmp_path / "moved.jsonl")
    with pytest.raises(LedgerError, match="could not be made to hold what was found"):
        session._parts.probe.on_finding(FOUND)
    assert session.epsilon(1e-5) == math.inf
    with pytest.raises(NotEstablishedError):
        session.backward(torch.zeros(0))
