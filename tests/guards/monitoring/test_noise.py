"""The monitor that stays on: it is silent in correct training, and ends training where the noise is wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn

import hushgrad
from hushgrad.accounting import read_ledger
from hushgrad.errors import NoiseMismatchError
from hushgrad.guards.monitoring.noise import NoiseMonitor, _least_squares
from hushgrad.mechanism import DPSGD
from hushgrad.session.session import Session
from hushgrad.strategies.banded import INDEPENDENT
from hushgrad.strategies.buffered import BufferedStrategy
from hushgrad.strategies.optimal_banded import optimal_banded
from hushgrad.strategies.strategy import Strategy


def session(model: nn.Module, path: Path | None = None) -> tuple[Session, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    mechanism = DPSGD(
        noise_multiplier=1.0,
        clipping=hushgrad.FlatClipping(0.3),
        sampling=hushgrad.PoissonSampling(0.1),
        expected_batch_size=16,
    )
    return hushgrad.privatize(model, optimizer, mechanism, ledger=path, lease=5), optimizer


def steps(count: int, path: Path | None = None) -> Session:
    model = nn.Sequential(nn.Linear(10, 300), nn.Tanh(), nn.Linear(300, 3))
    running, optimizer = session(model, path)
    try:
        for _ in range(count):
            running.backward(model(torch.randn(16, 10)).square().sum(1))
            optimizer.step()
    finally:
        running.close()
    return running


@pytest.mark.statistical
def test_correct_training_raises_no_alarm() -> None:
    """False-alarm probability 1e-12; the ratio is within nine standard errors."""
    monitor = steps(80).noise_monitor
    assert monitor.values == 80 * 64
    assert monitor.ratio == pytest.approx(1, abs=9 / math.sqrt(2 * monitor.values))


@pytest.mark.statistical
@pytest.mark.parametrize("factor", [0.0, 0.5, 0.8, 2.0])
def test_noise_of_another_level_ends_training(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Guarantee: noise that comes a second time, and noise of another level than is charged, end training with an
    error.
    """
    import hushgrad.mechanism.gaussian

    right = hushgrad.mechanism.gaussian.noisy_updates
    monkeypatch.setattr(
        hushgrad.mechanism.gaussian,
        "noisy_updates",
        lambda totals, *, noise_std, divisor, stream: right(
            totals, noise_std=factor * noise_std, divisor=divisor, stream=stream
        ),
    )
    with pytest.raises(NoiseMismatchError, match=r"times what is charged|already"):
        steps(80)


def test_noise_that_comes_a_second_time_ends_training() -> None:
    monitor, total = NoiseMonitor(), torch.zeros(100)
    noise = torch.randn(100)
    monitor.after(monitor.before([total]), [noise], 1.0, 1.0)
    with pytest.raises(NoiseMismatchError, match="already"):
        monitor.after(monitor.before([total]), [noise], 1.0, 1.0)


def test_noise_that_rounding_swallows_is_not_taken_for_repeated_noise() -> None:
    monitor, total = NoiseMonitor(), torch.ones(100)
    for _ in range(3):  # beside a sum of 1, noise of 1e-8 is nothing in float32
        monitor.after(monitor.before([total]), [total.clone()], 1e-8, 1.0)
    assert monitor.verdict == "as charged"


def test_no_noise_on_purpose_is_not_an_alarm() -> None:
    monitor = NoiseMonitor()
    monitor.after(monitor.before([torch.zeros(9)]), [torch.zeros(9)], 0.0, 1.0)
    assert monitor.values == 0
    assert math.isnan(monitor.ratio)


def test_the_cost_of_a_step_does_not_grow_with_the_parameters() -> None:
    """64 values are looked at, of a sum of any size: no test of time, but of what is copied."""
    monitor = NoiseMonitor()
    sample = monitor.before([torch.zeros(1_000_000)])
    assert sample[0].untyped_storage().nbytes() == 64 * 4


@pytest.mark.statistical
def test_the_ledger_says_what_was_found_and_how_many_steps_were_looked_at(tmp_path: Path) -> None:
    """Notes after 16, 32 and 64 steps and at the end; the statistic is beyond 9 with a probability below 1e-12."""
    steps(80, tmp_path / "ledger.jsonl")
    view = read_ledger(tmp_path / "ledger.jsonl")
    assert view.steps == 80
    notes = [note for note in view.notes if note.about == "noise monitor"]
    assert [note.values["steps_watched"] for note in notes] == [16, 32, 64, 80]
    for note in notes:
        assert set(note.values) == {"steps_watched", "standard_errors", "verdict"}
        assert note.steps == note.values["steps_watched"]
        assert note.values["verdict"] == "as charged"
        assert abs(float(note.values["standard_errors"])) < 9


def test_an_alarm_is_in_the_ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import hushgrad.mechanism.gaussian

    right = hushgrad.mechanism.gaussian.noisy_updates
    monkeypatch.setattr(
        hushgrad.mechanism.gaussian,
        "noisy_updates",
        lambda totals, *, noise_std, divisor, stream: right(
            totals, noise_std=0.5 * noise_std, divisor=divisor, stream=stream
        ),
    )
    with pytest.raises(NoiseMismatchError):
        steps(80, tmp_path / "ledger.jsonl")
    notes = read_ledger(tmp_path / "ledger.jsonl").notes
    note = [note for note in notes if note.about == "noise monitor"][-1]
    assert note.values["verdict"] == "not what is charged"
    assert float(note.values["standard_errors"]) < -9


@pytest.mark.parametrize("count", [8, 22, 64, 1000])
def test_one_step_without_noise_is_an_alarm_in_that_step(count: int) -> None:
    monitor, total = NoiseMonitor(), torch.randn(count)
    monitor.after(monitor.before([total]), [total + torch.randn(count)], 1.0, 1.0)
    with pytest.raises(NoiseMismatchError, match="times what is charged"):
        monitor.after(monitor.before([total]), [total.clone()], 1.0, 1.0)
    assert monitor.verdict == "missing in a step"


@pytest.mark.parametrize("count", [1, 2, 8, 64])
def test_a_sum_of_squares_that_is_an_alarm_is_rarer_than_one_in_1e20(count: int) -> None:
    assert 0 < stats.chi2.cdf(_least_squares(count), count) <= 1e-20
    assert _least_squares(count) > 0


@pytest.mark.parametrize("size", [0.0, 1.0, 100.0])
def test_repeated_noise_is_found_beside_sums_that_differ(size: float) -> None:
    """Adding a sum and taking it away again rounds the noise, each time otherwise."""
    monitor, noise = NoiseMonitor(), torch.randn(64)

    def repeat() -> None:
        for _ in range(10):
            total = size * torch.randn(64)
            monitor.after(monitor.before([total]), [(total + noise) / 7.3], 1.0, 7.3)

    with pytest.raises(NoiseMismatchError, match="already"):
        repeat()


def test_noise_drawn_afresh_raises_no_alarm_whatever_the_sums_are() -> None:
    """False alarms: below 1e-16 for two that agree, below 1e-16 for small ones, in 10⁴ steps."""
    monitor = NoiseMonitor()
    for number in range(10_000):
        total = (10.0 ** (number % 6)) * torch.ones(9)
        monitor.after(monitor.before([total]), [(total + torch.randn(9)) / 3], 1.0, 3.0)
    assert monitor.verdict == "as charged"


STRATEGIES = [optimal_banded(50, 8), BufferedStrategy((0.95, 0.5), (0.2, 0.3))]


def _seen(strategy: Strategy, released: Strategy, steps: int, level: float = 1.0) -> NoiseMonitor:
    """Let a monitor that expects one strategy see the noise of another, on three sums."""
    monitor = NoiseMonitor()
    monitor.begin(strategy)
    memories = [released.memory() for _ in range(3)]
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        sums = [torch.randn(70, generator=generator) for _ in range(3)]
        sample = monitor.before(sums)
        noise = [memory.correlated(level * torch.randn(70, generator=generator)) for memory in memories]
        monitor.after(sample, [(one + other) / 4 for one, other in zip(sums, noise, strict=True)], 1.0, 4.0)
    return monitor


@pytest.mark.statistical
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_correlated_noise_is_whitened_before_it_is_judged(strategy: Strategy) -> None:
    """False-alarm probability 1e-12; fixed seed."""
    monitor = _seen(strategy, strategy, 200)
    assert monitor.verdict == "as charged"
    assert monitor.ratio == pytest.approx(1, abs=9 / math.sqrt(2 * monitor.values))


@pytest.mark.parametrize(
    ("strategy", "released", "level"),
    [
        (STRATEGIES[0], STRATEGIES[0], 0.7),
        (STRATEGIES[0], INDEPENDENT, 0.7),
        (STRATEGIES[1], STRATEGIES[1], 0.7),
        (STRATEGIES[1], INDEPENDENT, 1.0),
        (INDEPENDENT, STRATEGIES[0], 1.0),
    ],
)
def test_noise_whose_level_is_not_that_of_the_strategy_ends_training(
    strategy: Strategy, released: Strategy, level: float
) -> None:
    """Independent noise of the level σ in the place of banded noise costs the same, so that it is no alarm here."""
    with pytest.raises(NoiseMismatchError, match="times what is charged"):
        _seen(strategy, released, 400, level)


def test_noise_that_comes_again_in_another_row_is_found() -> None:
    strategy = optimal_banded(50, 4)
    monitor, memory, fresh = NoiseMonitor(), strategy.memory(), torch.randn(64)
    monitor.begin(strategy)
    total = torch.zeros(64)
    monitor.after(monitor.before([total]), [memory.correlated(fresh.clone())], 1.0, 1.0)
    with pytest.raises(NoiseMismatchError, match="already"):
        monitor.after(monitor.before([total]), [memory.correlated(fresh.clone())], 1.0, 1.0)


def test_a_sum_whose_rounding_is_in_the_noise_spoils_what_is_whitened_with_it_and_a_new_block_begins_clean() -> None:
    strategy = optimal_banded(50, 4)
    monitor = NoiseMonitor()
    for blocks in range(2):
        monitor.begin(strategy)
        memory = strategy.memory()
        for size in (0.0, 1e7, 0.0):
            total = torch.full((64,), size)
            monitor.after(monitor.before([total]), [total + memory.correlated(torch.randn(64))], 1.0, 1.0)
        assert monitor.values == 64 * (blocks + 1)
