"""Training over random batches: what is drawn is what is charged, pass by pass, also after a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import DPSGD, BallsInBinsSampling, FixedSizeSampling, FlatClipping, PoissonSampling, PrivacyEngine
from hushgrad.accounting import FixedSizeSampled, RandomAllocation, epsilon, read_ledger
from hushgrad.errors import (
    BudgetExhaustedError,
    ContractChangedError,
    DatasetError,
    InvalidArgumentError,
    ProtocolError,
)

N, BINS = 60, 6


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(N, 5, generator=generator), torch.randint(0, 3, (N,), generator=generator))


def plan(**changes: object) -> DPSGD:
    settings = {
        "noise_multiplier": 1.2,
        "clipping": FlatClipping(0.5),
        "sampling": BallsInBinsSampling(BINS),
        "expected_batch_size": N / BINS,
    }
    return DPSGD(**{**settings, **changes})  # type: ignore[arg-type]


def opened(mechanism: DPSGD, path: Path | None = None, **settings: object):  # type: ignore[no-untyped-def]
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = hushgrad.privatize(model, optimizer, mechanism, ledger=path, **settings)  # type: ignore[arg-type]
    return model, optimizer, session


def run(model, optimizer, session, loader, steps: int | None = None) -> None:  # type: ignore[no-untyped-def]
    taken = 0
    for x, y in loader:
        session.backward(nn.functional.cross_entropy(model(x), y, reduction="none"))
        optimizer.step()
        taken += session.last_step_updated
        if taken == steps:
            return


def test_every_record_takes_part_once_a_pass_and_each_pass_is_charged_once() -> None:
    model, optimizer, session = opened(plan())
    loader = session.batches(data(), max_physical_batch_size=4)
    assert len(loader) == BINS
    for _ in range(2):
        run(model, optimizer, session, loader)
    assert session.charged == [(RandomAllocation(BINS, 1.2, index), BINS) for index in range(2)]
    expected = epsilon([(RandomAllocation(BINS, 1.2, index), 1) for index in range(2)], 1e-5)
    assert session.epsilon(1e-5) == expected
    sentence = str(session.guarantee(1e-5))
    assert "one random step of the 6 of each of 2 passes (balls in bins)" in sentence
    assert "add/remove-one" in sentence


def test_a_pass_that_a_crash_cuts_off_is_charged_whole_and_the_next_one_is_another(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    for steps in (2, None):
        model, optimizer, session = opened(plan(), path)
        run(model, optimizer, session, session.batches(data()), steps)
        session.close()
    events = read_ledger(path).events
    assert events == [(RandomAllocation(BINS, 1.2, 0), 2), (RandomAllocation(BINS, 1.2, 1), BINS)]
    assert epsilon(events, 1e-5) == epsilon([(RandomAllocation(BINS, 1.2, index), 1) for index in range(2)], 1e-5)


def test_planned_passes_are_a_limit_that_a_broken_off_one_counts_into(tmp_path: Path) -> None:
    mechanism = plan(passes=2)
    model, optimizer, session = opened(mechanism, tmp_path / "ledger")
    loader = session.batches(data())
    run(model, optimizer, session, loader, 1)
    run(model, optimizer, session, loader)
    with pytest.raises(BudgetExhaustedError, match="2 passes"):
        run(model, optimizer, session, loader)
    assert session.epsilon(1e-5) == mechanism.epsilon(1e-5)


def test_the_steps_left_are_those_of_the_passes_that_are_left(tmp_path: Path) -> None:
    """Of three passes of six steps; also where the plan counts steps, as that of a facade does."""
    mechanism = plan(passes=3, steps=18)
    model, optimizer, session = opened(mechanism, tmp_path / "ledger")
    assert (session.passes_left, session.steps_left) == (3, 18)
    loader = session.batches(data())
    assert (session.passes_left, session.steps_left) == (3, 18)
    run(model, optimizer, session, loader, 2)
    assert (session.passes_left, session.steps_left) == (2, 16)
    session.close()
    model, optimizer, session = opened(mechanism, tmp_path / "ledger")
    loader = session.batches(data())
    assert (session.passes_left, session.steps_left) == (2, 12)
    run(model, optimizer, session, loader)
    run(model, optimizer, session, loader)
    assert (session.passes_left, session.steps_left, session.steps) == (0, 0, 14)
    _, _, session = opened(plan())
    assert session.passes_left is session.steps_left is None


def test_steps_of_an_earlier_phase_are_no_pass_that_goes_on(tmp_path: Path) -> None:
    poisson = plan(sampling=PoissonSampling(0.1), expected_batch_size=6)
    model, optimizer, session = opened(poisson, tmp_path / "ledger", phase="first")
    run(model, optimizer, session, session.batches(data()), 2)
    session.close()
    _, _, session = opened(plan(passes=2), tmp_path / "ledger", phase="second")
    session.batches(data())
    assert (session.passes_left, session.steps_left) == (2, 12)


def test_a_ledger_is_not_continued_with_other_bins(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    model, optimizer, session = opened(plan(passes=3), path)
    run(model, optimizer, session, session.batches(data()), 1)
    session.close()
    other = plan(passes=3, sampling=BallsInBinsSampling(BINS, 2), expected_batch_size=N / BINS * 2)
    _, _, session = opened(other, path)
    with pytest.raises(ContractChangedError):
        session.batches(data())


def test_k_of_t_trains_and_is_charged_as_that() -> None:
    mechanism = plan(sampling=BallsInBinsSampling(BINS, 3), expected_batch_size=N / 2)
    model, optimizer, session = opened(mechanism)
    run(model, optimizer, session, session.batches(data()))
    assert session.charged == [(RandomAllocation(BINS, 1.2, 0, 3), BINS)]


def test_it_is_not_charged_at_a_loops_word() -> None:
    model, _, session = opened(plan())
    x, y = data()[:]
    losses = nn.functional.cross_entropy(model(x), y, reduction="none")
    with pytest.raises(ProtocolError, match="where a pass ends"):
        session.backward(losses)


def test_schedules_and_limits_in_steps_follow_from_passes() -> None:
    with pytest.raises(InvalidArgumentError, match="noise_schedule"):
        plan(noise_schedule=(1.0, 2.0))
    calibrated = plan(passes=3).calibrate(epsilon=2.0, delta=1e-5)
    assert calibrated.epsilon(1e-5) <= 2.0
    assert calibrated.with_noise_multiplier(calibrated.noise_multiplier * 0.998).epsilon(1e-5) > 2.0


@pytest.mark.parametrize("name", ["balls-in-bins", "fixed-size", "poisson"])
def test_the_facade_takes_a_sampling_by_name(name: str) -> None:
    model = nn.Linear(5, 3)
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data(), batch_size=16, shuffle=True),
        noise_multiplier=1.2,
        max_grad_norm=0.5,
        sampling=name,
    )
    run(model, optimizer, engine.session, loader)
    expected = {
        "balls-in-bins": (BallsInBinsSampling(4), 15.0, RandomAllocation(4, 1.2, 0)),
        "fixed-size": (FixedSizeSampling(16, N), 16.0, FixedSizeSampled(16, N, 1.2)),
        "poisson": (hushgrad.PoissonSampling(16 / N), 16.0, hushgrad.PoissonSampling(16 / N).event(1.2)),
    }[name]
    assert (engine.mechanism.sampling, engine.mechanism.expected_batch_size) == expected[:2]
    assert engine.session.charged == [(expected[2], 4)]
    assert engine.get_epsilon(1e-5) == epsilon(engine.session.charged, 1e-5)


def test_the_facade_calibrates_for_passes_and_stops_after_them() -> None:
    model = nn.Linear(5, 3)
    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data(), batch_size=10),
        target_epsilon=2.0,
        target_delta=1e-5,
        epochs=1,
        max_grad_norm=0.5,
        sampling="balls-in-bins",
    )
    run(model, optimizer, engine.session, loader)
    assert 1.99 < engine.get_epsilon(1e-5) <= 2.0
    with pytest.raises(BudgetExhaustedError):
        run(model, optimizer, engine.session, loader)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sampling": "shuffled"},
        {"sampling": 3},
        {"sampling": "poisson", "poisson_sampling": False},
        {"sampling": BallsInBinsSampling(6), "max_batch_size": 20},
        {"sampling": BallsInBinsSampling(7)},
    ],
)
def test_what_says_two_things_or_none_is_refused(arguments: dict[str, object]) -> None:
    model = nn.Linear(5, 3)
    with pytest.raises(InvalidArgumentError):
        PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(data(), batch_size=10),
            noise_multiplier=1.0,
            max_grad_norm=0.5,
            **arguments,  # type: ignore[arg-type]
        )


def test_a_stream_is_not_allocated() -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(data())

    model = nn.Linear(5, 3)
    with pytest.raises(DatasetError, match="stream"):
        PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(Stream(), batch_size=10),
            noise_multiplier=1.0,
            max_grad_norm=0.5,
            sampling="balls-in-bins",
        )
