"""A sampling scheme of somebody else's in one file: trained, charged, verified, told, and found where it is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import DPSGD, Budget, FlatClipping, SamplingScheme
from hushgrad.accounting import Event, PoissonSampled, epsilon, guarantee, read_ledger, register_event
from hushgrad.accounting.events import registry
from hushgrad.accounting.events.costs import Costs
from hushgrad.arguments import non_negative_number, probability
from hushgrad.checks.verification.verdict import Verdict
from hushgrad.errors import BudgetExhaustedError, InvalidArgumentError
from hushgrad.mechanism import GaussianNoise
from hushgrad.randomness import Address, KeyStream

N, FIRST, OFTEN, SELDOM = 60, 30, 0.2, 0.1
B = 9


@dataclass(frozen=True, slots=True)
class StrataSampled(Event):
    """A step that takes some records with one rate and the others with another, which rate is a public matter."""

    greatest_rate: float
    least_rate: float
    noise_multiplier: float

    type: ClassVar[str] = "test_strata_sampled"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = "zero-out"

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))

    def add_to(self, costs: Costs, count: int) -> None:
        """Add what the step costs a record of the greater rate: less is less.

        Of two data sets that differ in one record, which has the rate q, the sums differ by at most C with probability
        q, independently of all others: the pair of Poisson sampling with q, whose cost grows with q.
        """
        PoissonSampled(self.greatest_rate, self.noise_multiplier).add_to(costs, count)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        return f"Poisson with rates {ran[0][0].least_rate:g} to {ran[0][0].greatest_rate:g}, by public strata"

    @property
    def charged_rate(self) -> float:
        return self.greatest_rate


@dataclass(frozen=True)
class Strata(SamplingScheme):
    """Records before `first` take part with the rate `often`, the others with `seldom`, each independently.

    Zero-out, because the absence of a record would move another one into its stratum.
    """

    first: int
    often: float
    seldom: float

    def __post_init__(self) -> None:
        probability("often", self.often)
        probability("seldom", self.seldom)

    def sampler(self, population: int, stream: KeyStream, batches: object = None) -> StrataSampler:
        return StrataSampler(self._rates(population), stream)

    def event(self, noise_multiplier: float, pass_index: int = 0) -> StrataSampled:
        rates = sorted((self.often, self.seldom))
        return StrataSampled(rates[1], rates[0], noise_multiplier)

    def inclusion_probability(self, population: int) -> float:
        return max(self.often, self.seldom)

    def expected_batch_size(self, population: int) -> float:
        return self.first * self.often + (population - self.first) * self.seldom

    def _rates(self, population: int) -> np.ndarray:
        return np.where(np.arange(population) < self.first, self.often, self.seldom)


class StrataSampler:
    """Throws one coin for each record, of 64 bits of the stream."""

    def __init__(self, rates: np.ndarray, stream: KeyStream) -> None:
        self.rates, self.stream = rates, stream

    def one_pass(self, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        for step in range(first_step, first_step + steps):
            coins = np.frombuffer(self.stream.read(Address(step), 8 * len(self.rates)), np.uint64)
            yield tuple(np.flatnonzero(coins < self.rates * 2.0**64).tolist())


@dataclass(frozen=True)
class TooOften(Strata):
    """The planted bug: the first stratum is drawn with twice its rate."""

    def _rates(self, population: int) -> np.ndarray:
        return np.where(np.arange(population) < self.first, 2 * self.often, self.seldom)


@dataclass(frozen=True)
class TooOftenButLess(Strata):
    """The planted bug that the greatest rate hides: the other stratum is drawn with twice its rate."""

    def _rates(self, population: int) -> np.ndarray:
        return np.where(np.arange(population) < self.first, self.often, 2 * self.seldom)


@dataclass(frozen=True)
class Cheap(Strata):
    """The planted bug in the charge: the mean of the rates, which is what half of the records exceed."""

    def event(self, noise_multiplier: float, pass_index: int = 0) -> StrataSampled:
        return StrataSampled((self.often + self.seldom) / 2, self.seldom, noise_multiplier)


@dataclass(frozen=True)
class Turns(Strata):
    """The planted bug that every rate hides: batches are parts of one order, and come again in turn."""

    def sampler(self, population: int, stream: KeyStream, batches: object = None) -> Turns:
        return self

    def one_pass(self, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        for step in range(first_step, first_step + steps):
            yield tuple((np.arange(B) * 6 + step % 6).tolist())


@dataclass(frozen=True)
class Rewound(Strata):
    """The planted bug that one pass does not show: it numbers its steps anew in every pass, which then is the first."""

    def sampler(self, population: int, stream: KeyStream, batches: object = None) -> StrataSampler:
        return RewoundSampler(self._rates(population), stream)


class RewoundSampler(StrataSampler):
    def one_pass(self, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        return super().one_pass(steps, 0)


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kinds are a process's own: what a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))
    register_event(StrataSampled)


def mechanism(kind: type[Strata] = Strata, **changes: object) -> DPSGD:
    settings = {
        "noise_multiplier": 1.0,
        "clipping": FlatClipping(0.5),
        "sampling": kind(FIRST, OFTEN, SELDOM),
        "expected_batch_size": B,
    }
    return DPSGD(**{**settings, **changes})  # type: ignore[arg-type]


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(N, 20, generator=generator), torch.arange(N) % 4)


def trained(path: Path | None, plan: DPSGD, steps: int = 30, **settings: object) -> hushgrad.Session:
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = hushgrad.privatize(model, optimizer, plan, ledger=path, **settings)  # type: ignore[arg-type]
    for inputs, labels in session.batches(data(), steps_per_pass=steps, max_physical_batch_size=5):
        session.backward(nn.functional.cross_entropy(model(inputs), labels, reduction="none"))
        optimizer.step()
    return session


def test_training_with_it_is_charged_and_told(tmp_path: Path) -> None:
    session = trained(tmp_path / "ledger", mechanism())
    assert session.charged == [(StrataSampled(OFTEN, SELDOM, 1.0), 30)]
    assert session.epsilon(1e-5) == epsilon([(PoissonSampled(OFTEN, 1.0), 30)], 1e-5)
    told = session.guarantee(1e-5)
    assert "Poisson with rates 0.1 to 0.2, by public strata" in str(told)
    assert "under zero-out neighbours" in str(told)
    of_event, of_scheme = told.conditions
    assert (of_event.name, of_scheme.name) == ("third-party event", "third-party sampling")
    assert f"{__name__}.StrataSampled," in of_event.sentence
    assert f"{__name__}.Strata," in of_scheme.sentence
    session.close()
    view = read_ledger(tmp_path / "ledger")
    assert (view.events, view.conditions) == ([(StrataSampled(OFTEN, SELDOM, 1.0), 30)], (of_scheme,))
    assert guarantee(view.events, 1e-5, conditions=view.conditions).conditions == told.conditions


def test_a_ledger_of_it_is_continued_to_the_end_of_its_budget(tmp_path: Path) -> None:
    plan = mechanism(steps=40)
    trained(tmp_path / "ledger", plan).close()
    with pytest.raises(BudgetExhaustedError):
        trained(tmp_path / "ledger", plan)
    assert read_ledger(tmp_path / "ledger").steps == 40
    most = Budget(6.0, 1e-5).most(lambda count: [(PoissonSampled(OFTEN, 1.0), count)], 10**6)
    with pytest.raises(BudgetExhaustedError):
        trained(tmp_path / "other", mechanism(), steps=most + 1, budget=Budget(6.0, 1e-5))
    assert read_ledger(tmp_path / "other").steps == most


def test_calibration_and_schedules_know_it() -> None:
    found = mechanism(steps=100).calibrate(epsilon=2.0, delta=1e-5)
    assert epsilon([(PoissonSampled(OFTEN, found.noise_multiplier), 100)], 1e-5) == pytest.approx(2.0, rel=1e-3)
    scheduled = mechanism(noise_schedule=(1.0, 2.0, 2.0))
    assert scheduled.composition() == [(StrataSampled(OFTEN, SELDOM, 1.0), 1), (StrataSampled(OFTEN, SELDOM, 2.0), 2)]


def test_what_does_not_fit_it_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="passes does not go with Strata"):
        mechanism(passes=2)
    with pytest.raises(InvalidArgumentError, match="9 of 60 records"):
        trained(None, mechanism(expected_batch_size=8))
    assert GaussianNoise(1.0).event(Strata(FIRST, OFTEN, SELDOM)) == StrataSampled(OFTEN, SELDOM, 1.0)


def verified(kind: type[Strata]) -> Verdict:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 4))
    loader = DataLoader(data(), batch_size=B, shuffle=True)
    return hushgrad.verify(model, loader, nn.CrossEntropyLoss(), mechanism(kind), resolution=0.05)


@pytest.mark.statistical
def test_verification_passes() -> None:
    """False alarm 1e-6."""
    verdict = verified(Strata)
    assert verdict.passed, verdict.to_text()
    assert {check.claim for check in verdict.checks if check.part == "sampling"} >= {
        "no record takes part more often than the charge allows",
        "logical batches have the expected size on average",
        "draws of different steps are independent",
    }


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("kind", "part", "cause"),
    [
        (TooOften, "sampling", "sampling-rate"),
        pytest.param(TooOftenButLess, "sampling", "sampling-size", marks=pytest.mark.slow),
        pytest.param(Turns, "sampling", "sampling-dependent", marks=pytest.mark.slow),
        pytest.param(Rewound, "sampling", "sampling-dependent", marks=pytest.mark.slow),
        pytest.param(Cheap, "ledger", None, marks=pytest.mark.slow),
    ],
)
def test_verification_finds_a_bug_in_it(kind: type[Strata], part: str, cause: str | None) -> None:
    verdict = verified(kind)
    assert {check.part for check in verdict.checks if not check.passed} == {part}
    if cause is not None:
        assert cause in [found.code for found in verdict.causes]
