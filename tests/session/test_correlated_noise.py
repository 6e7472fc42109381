"""Noise that is correlated between the steps of a session: exact, and begun anew wherever a step does not follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hushgrad import DisjointBatches, FlatClipping, GaussianNoise, Mechanism, PoissonSampling, Session, privatize
from hushgrad.accounting import Budget, CyclicPoisson, FixedOrder, FixedOrderBuffered, read_ledger
from hushgrad.errors import (
    AccountingError,
    BudgetExhaustedError,
    ContractChangedError,
    InvalidArgumentError,
    NoiseMismatchError,
    UnprovenMechanismError,
)
from hushgrad.mechanism import CorrelatedNoise, NoiseMechanism
from hushgrad.parallel.world import World
from hushgrad.randomness import KeyStream
from hushgrad.sampling import CyclicPoissonSampling, FixedOrderBatches, SamplingScheme
from hushgrad.session.set_up import _require_divisible
from hushgrad.session.update import Update
from hushgrad.strategies.buffered import BufferedStrategy
from hushgrad.strategies.optimal_banded import optimal_banded
from hushgrad.strategies.strategy import Strategy

BANDED = optimal_banded(20, 4)
BUFFERED = BufferedStrategy((0.9, 0.3), (0.3, 0.4))
CYCLIC = CyclicPoissonSampling(0.2, 4)
ORDERED = FixedOrderBatches(5)
LOUD = 1e6  # beside which the clipped sums are rounding
PAIRS = [(BANDED, CYCLIC), (BANDED, ORDERED), (BUFFERED, ORDERED)]


def mechanism(noise: NoiseMechanism, sampling: SamplingScheme, **more: Any) -> Mechanism:
    return Mechanism(noise=noise, clipping=FlatClipping(1.0), sampling=sampling, expected_batch_size=4, **more)


class Run:
    """A session over 20 records, and what it released."""

    def __init__(self, plan: Mechanism, key: int | None = 5, **more: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        if key is not None:
            more["key"] = KeyStream.fixed_for_tests(key)
        self.session: Session = privatize(self.model, self.optimizer, plan, **more)
        takes = plan.sampling.takes_batches
        batches = [range(4 * place, 4 * place + 4) for place in range(5)] if takes else None
        self.loader = self.session.batches(
            TensorDataset(torch.randn(20, 3)), batches=batches, steps_per_pass=None if takes else 5
        )
        self.released: list[Tensor] = []
        # After the session's own hook, which writes the update.
        self.optimizer.register_step_pre_hook(lambda *_: self._note())

    def _note(self) -> None:
        self.released.append(torch.cat([p.grad.flatten() * 4 for p in self.model.parameters()]).double())  # type: ignore[union-attr]

    def work(self, item: Any) -> None:
        self.session.backward(self.model(item[0]).square().sum(1))
        self.optimizer.step()

    def steps(self, count: int) -> Run:
        """Take so many steps, in whole passes and a last one that is broken off, if it is."""
        while count > 0:
            for item in self.loader:
                self.work(item)
                count -= 1
                if not count:
                    break
        return self

    @property
    def events(self) -> list[Any]:
        return self.session.charged


def fresh(sampling: SamplingScheme, steps: int) -> np.ndarray:
    """Return Z: what independent noise under the same key adds."""
    return torch.stack(Run(mechanism(GaussianNoise(LOUD), sampling)).steps(steps).released).numpy()


def dense(strategy: Strategy, steps: int) -> np.ndarray:
    c = strategy.coefficients(steps)
    return np.array([[c[row - column] if row >= column else 0.0 for column in range(steps)] for row in range(steps)])


@pytest.mark.parametrize(("strategy", "sampling"), PAIRS)
def test_what_is_added_to_the_sums_of_a_block_is_the_dense_inverse_times_fresh_noise(
    strategy: Strategy, sampling: SamplingScheme
) -> None:
    """Guarantee: what is added to the sums of a block is C⁻¹Z."""
    run = Run(mechanism(CorrelatedNoise(LOUD, strategy), sampling)).steps(15)
    expected = np.linalg.solve(dense(strategy, 15), fresh(sampling, 15))
    assert np.abs(torch.stack(run.released).numpy() - expected).max() < 1e-4 * LOUD
    run.session.close()
    assert run.session.noise_monitor.verdict == "as charged"
    assert run.session.noise_monitor.ratio == pytest.approx(1, abs=0.5)


def test_sums_are_under_the_noise() -> None:
    """With next to no noise the releases are the clipped sums, as those of independent noise are."""
    quiet = [
        torch.stack(Run(mechanism(noise, CYCLIC)).steps(10).released)
        for noise in (CorrelatedNoise(1e-9, BANDED), GaussianNoise(1e-9))
    ]
    assert torch.allclose(*quiet, rtol=0, atol=1e-6)
    assert quiet[0].abs().max() > 1e-3


@pytest.mark.parametrize(("strategy", "sampling"), PAIRS)
def test_a_batch_that_is_dropped_begins_a_block_whose_noise_is_independent(
    strategy: Strategy, sampling: SamplingScheme
) -> None:
    """Guarantee: no noise of one block is in another."""
    run = Run(mechanism(CorrelatedNoise(LOUD, strategy), sampling))
    for number, item in enumerate(run.loader):
        if number == 2:
            run.session.backward(run.model(item[0]).square().sum(1))
            run.session.discard()
        else:
            run.work(item)
    z = fresh(sampling, 4)
    expected = np.concatenate([np.linalg.solve(dense(strategy, 2), z[:2]), np.linalg.solve(dense(strategy, 2), z[2:])])
    assert np.abs(torch.stack(run.released).numpy() - expected).max() < 1e-4 * LOUD
    assert [(event.in_block, count) for event, count in run.events] == [(0, 2), (1, 2)]


def test_a_pass_that_is_broken_off_begins_a_block_and_whole_passes_do_not() -> None:
    run = Run(mechanism(CorrelatedNoise(1.0, BANDED), CYCLIC)).steps(10)
    assert [(event.in_block, count) for event, count in run.events] == [(0, 10)]
    run.steps(2).steps(5)
    assert [(event.in_block, count) for event, count in run.events] == [(0, 12), (1, 5)]


def test_noise_of_a_step_that_was_interrupted_is_in_no_later_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of what is released would move against the turns of the records."""
    run = Run(mechanism(CorrelatedNoise(LOUD, BANDED), CYCLIC))
    whole = Update._hand_out

    def interrupted(*arguments: Any) -> None:
        whole(*arguments)
        raise KeyboardInterrupt

    for number, item in enumerate(run.loader):
        if number == 2:
            monkeypatch.setattr(Update, "_hand_out", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run.work(item)
            monkeypatch.setattr(Update, "_hand_out", whole)
        else:
            run.work(item)
    z = fresh(CYCLIC, 5)
    expected = np.concatenate([np.linalg.solve(dense(BANDED, 2), part) for part in (z[:2], z[3:])])
    assert np.abs(torch.stack(run.released).numpy() - expected).max() < 1e-4 * LOUD
    assert run.events == [(CyclicPoisson(0.8, LOUD, 4, 0), 5)]  # its turns are those that were drawn


@pytest.mark.parametrize(
    ("strategy", "sampling", "event"),
    [
        (BANDED, CYCLIC, CyclicPoisson(0.8, 1.0, 4, 0)),
        (BANDED, ORDERED, FixedOrder(1.0, 5, 0)),
        (BUFFERED, ORDERED, FixedOrderBuffered.of(1.0, 5, BUFFERED, 0)),
    ],
)
def test_steps_are_charged_as_one_block_and_a_resume_as_another(
    tmp_path: Path, strategy: Strategy, sampling: SamplingScheme, event: Any
) -> None:
    plan, path = mechanism(CorrelatedNoise(1.0, strategy), sampling), tmp_path / "ledger.jsonl"
    first = Run(plan, key=None, ledger=path).steps(5)
    first.session.close()
    assert first.events == [(event, 5)]
    second = Run(plan, key=None, ledger=path).steps(7)
    second.session.close()
    assert [(part.in_block, count) for part, count in read_ledger(path).events] == [(0, 5), (1, 7)]
    assert read_ledger(path).contract.strategy == strategy.describe()
    assert second.session.epsilon(1e-5) > first.session.epsilon(1e-5)


@pytest.mark.parametrize(("steps", "first", "second"), [(12, 3, 8), (12, 4, 8), (12, 1, 8), (13, 2, 11), (12, 12, 0)])
def test_after_a_resume_a_plan_ends_where_its_turns_are_used_up(
    tmp_path: Path, steps: int, first: int, second: int
) -> None:
    """⌈steps / 4⌉ turns are planned; the block before took ⌈first / 4⌉ of them."""
    plan, path = mechanism(CorrelatedNoise(1.0, BANDED), CYCLIC, steps=steps), tmp_path / "ledger.jsonl"
    before = Run(plan, key=None, ledger=path).steps(first)
    before.session.close()
    after = Run(plan, key=None, ledger=path)
    assert after.session.steps_left == second
    with pytest.raises(BudgetExhaustedError):
        after.steps(steps)
    after.session.close()
    assert sum(count for _, count in read_ledger(path).events) == first + second
    assert after.session.epsilon(1e-5) <= plan.epsilon(1e-5) * (1 + 1e-9)


def test_spare_steps_pay_for_the_participation_that_a_resume_adds(tmp_path: Path) -> None:
    plan, path = mechanism(CorrelatedNoise(1.0, BANDED), CYCLIC, steps=12 + 4), tmp_path / "ledger.jsonl"
    Run(plan, key=None, ledger=path).steps(3).session.close()
    after = Run(plan, key=None, ledger=path).steps(9)
    assert after.session.steps == 12


@pytest.mark.parametrize(("strategy", "sampling"), PAIRS)
def test_a_block_that_does_not_fit_the_budget_is_refused_before_it_is_charged(
    strategy: Strategy, sampling: SamplingScheme
) -> None:
    plan = mechanism(CorrelatedNoise(3.0, strategy), sampling)
    one_block = plan.first(5)
    spent = mechanism(CorrelatedNoise(3.0, strategy), sampling, steps=5).epsilon(1e-5)
    run = Run(plan, budget=Budget(spent * 1.0001, 1e-5))
    run.steps(2)
    with pytest.raises(BudgetExhaustedError, match="beside the blocks"):
        run.steps(5)
    assert run.session.epsilon(1e-5) <= spent * 1.0001
    assert all(part.in_block == 0 for part, _ in one_block)


@pytest.mark.parametrize(
    ("strategy", "sampling"),
    [
        (BANDED, PoissonSampling(0.2)),
        (BANDED, DisjointBatches()),
        (BANDED, CyclicPoissonSampling(0.2, 3)),
        (BANDED, FixedOrderBatches(3)),
        (BUFFERED, CYCLIC),
        (BUFFERED, PoissonSampling(0.2)),
    ],
)
def test_a_sampling_that_does_not_keep_records_apart_is_refused_at_set_up(
    strategy: Strategy, sampling: SamplingScheme
) -> None:
    with pytest.raises(UnprovenMechanismError, match="it is not known what"):
        mechanism(CorrelatedNoise(1.0, strategy), sampling)


@pytest.mark.parametrize("name", ["noise_schedule", "clip_schedule"])
@pytest.mark.parametrize("noise", [CorrelatedNoise(1.0, BANDED), GaussianNoise(1.0)])
def test_schedules_on_top_are_refused(name: str, noise: NoiseMechanism) -> None:
    """Equal events are charged by the length of their block; factors would hide whose turns had the least noise."""
    with pytest.raises(InvalidArgumentError, match="does not go with"):
        mechanism(noise, CYCLIC, **{name: (1.0, 2.0)})
    with pytest.raises(InvalidArgumentError, match="does not go with"):
        mechanism(CorrelatedNoise(1.0, optimal_banded(4, 1)), CYCLIC, **{name: (1.0, 2.0)})


def test_other_parameters_in_the_middle_of_a_block_are_refused() -> None:
    run = Run(mechanism(CorrelatedNoise(1.0, BANDED), CYCLIC)).steps(5)
    run.model[0].weight.requires_grad_(False)
    with pytest.raises((NoiseMismatchError, ContractChangedError)):
        run.steps(5)


def test_groups_that_are_drawn_anew_and_not_charged_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: a resumed run goes on with the block of the run before, as if it had kept its groups."""
    plan, path = mechanism(CorrelatedNoise(1.0, BANDED), CYCLIC), tmp_path / "ledger.jsonl"
    Run(plan, key=None, ledger=path).steps(5).session.close()
    monkeypatch.setattr("hushgrad.session.spending.next_block", lambda events: 0)
    with pytest.raises(AccountingError, match="after that block has ended"):
        Run(plan, key=None, ledger=path).steps(1)


@pytest.mark.parametrize(("noise", "sampling"), [(CorrelatedNoise(1.0, BANDED), CYCLIC), (GaussianNoise(1.0), CYCLIC)])
def test_several_processes_are_refused_at_set_up(noise: NoiseMechanism, sampling: SamplingScheme) -> None:
    with pytest.raises(InvalidArgumentError, match="is for one process"):
        _require_divisible(mechanism(noise, sampling), World(size=2))


def test_another_strategy_does_not_continue_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Run(mechanism(CorrelatedNoise(1.0, BANDED), CYCLIC), key=None, ledger=path).steps(5).session.close()
    with pytest.raises(ContractChangedError, match="strategy"):
        Run(mechanism(CorrelatedNoise(1.0, optimal_banded(20, 3)), CYCLIC), key=None, ledger=path)


def test_the_guarantee_says_how_noise_is_correlated() -> None:
    said = str(Run(mechanism(CorrelatedNoise(1.0, BANDED), CYCLIC)).steps(5).session.guarantee(1e-5))
    assert "correlated with that of earlier ones by a BandedStrategy of 4 bands" in said
    assert "cyclic Poisson" in said


def _independent(strategy: Strategy) -> Callable[..., Any]:
    """Plant: noise of the claimed level, drawn anew in each step, where correlated noise is claimed."""

    def updates(self: Any, state: Any, totals: Any, *, sensitivity: float, divisor: float) -> list[Tensor]:
        return GaussianNoise(self.noise_multiplier / strategy.coefficients(1)[0]).updates(
            state.stream, totals, sensitivity=sensitivity, divisor=divisor
        )

    return updates


def test_noise_that_is_not_correlated_as_charged_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CorrelatedNoise, "updates", _independent(BANDED))
    run = Run(mechanism(CorrelatedNoise(1.0, BANDED), CYCLIC))
    with pytest.raises(NoiseMismatchError, match="times what is charged"):
        run.steps(400)
