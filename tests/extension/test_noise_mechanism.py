"""A noise mechanism of somebody else's in one file: trained, charged, verified, told, and found where it is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import DisjointBatches, FlatClipping, Mechanism, NoiseMechanism, PoissonSampling, SamplingScheme
from hushgrad.accounting import DisjointPass, Event, PoissonSampled, epsilon, read_ledger
from hushgrad.arguments import non_negative_number, probability
from hushgrad.checks.verification.verdict import Verdict
from hushgrad.errors import NoiseMismatchError, UnprovenMechanismError
from hushgrad.noise.gaussian import Noised, noisy_updates
from hushgrad.randomness import KeyStream

N, B, C = 400, 40, 0.5


@dataclass(frozen=True)
class TwoParties(NoiseMechanism):
    """Gaussian noise of two parties that do not trust one another: either one's is drawn from a stream of its own.

    The sum of independent N(0, s²) and N(0, t²) is N(0, s² + t²), so the two cost what Gaussian noise of their joint
    standard deviation costs, with every sampling. `share` is the first one's part of the variance.
    """

    noise_multiplier: float
    share: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        probability("share", self.share)

    def std(self, sensitivity: float) -> float:
        return self.noise_multiplier * sensitivity

    def start(self, stream: KeyStream) -> tuple[KeyStream, KeyStream]:
        return stream.fork("first party"), stream.fork("second party")

    def updates(
        self, state: tuple[KeyStream, KeyStream], totals: Sequence[Noised], *, sensitivity: float, divisor: float
    ) -> list[Tensor]:
        first = self.std(sensitivity) * math.sqrt(self.share)
        second = self.std(sensitivity) * math.sqrt(1 - self.share)
        sums = noisy_updates(totals, noise_std=first, divisor=1.0, stream=state[0])
        again = [Noised(total, part.address, overwrite=True) for total, part in zip(sums, totals, strict=True)]
        return noisy_updates(again, noise_std=second, divisor=divisor, stream=state[1])

    def event(self, sampling: SamplingScheme, pass_index: int = 0) -> Event:
        return sampling.event(self.noise_multiplier, pass_index)

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        return replace(self, noise_multiplier=noise_multiplier)


@dataclass(frozen=True)
class OnePartyStaysAway(TwoParties):
    """The planted bug: half of the noise does not come."""

    def updates(self, state: Any, totals: Sequence[Noised], *, sensitivity: float, divisor: float) -> list[Tensor]:
        return noisy_updates(totals, noise_std=self.std(sensitivity) / 2, divisor=divisor, stream=state[0])


@dataclass(frozen=True)
class SameStream(TwoParties):
    """The planted bug that the level of the noise shows: both parties draw the same values."""

    def start(self, stream: KeyStream) -> tuple[KeyStream, KeyStream]:
        return stream, stream


@dataclass(frozen=True)
class ChargedAsMore(TwoParties):
    """The planted bug in the charge: as if the parties' standard deviations added up."""

    def event(self, sampling: SamplingScheme, pass_index: int = 0) -> Event:
        return sampling.event(math.sqrt(2) * self.noise_multiplier, pass_index)


@dataclass(frozen=True)
class Remembers(TwoParties):
    """Counts the steps of its run in its state, and may be charged for disjoint batches only."""

    def start(self, stream: KeyStream) -> Any:
        return Memory(super().start(stream))

    def updates(self, state: Memory, totals: Sequence[Noised], **public: float) -> list[Tensor]:  # type: ignore[override]
        state.steps.append(totals[0].address.step)
        return super().updates(state.streams, totals, **public)

    def event(self, sampling: SamplingScheme, pass_index: int = 0) -> Event:
        if sampling.counts_in != "passes":
            raise self.unproven(sampling, cure="Use it with DisjointBatches")
        return super().event(sampling, pass_index)


@dataclass
class Memory:
    streams: tuple[KeyStream, KeyStream]
    steps: list[int] = field(default_factory=list)


def mechanism(noise: NoiseMechanism, **changes: Any) -> Mechanism:
    settings = {"clipping": FlatClipping(C), "sampling": PoissonSampling(B / N), "expected_batch_size": B}
    return Mechanism(noise=noise, **{**settings, **changes})


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(N, 20, generator=generator), torch.arange(N) % 4)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 4))


def trained(plan: Mechanism, path: Path | None = None, steps: int = 30) -> hushgrad.Session:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = hushgrad.privatize(model, optimizer, plan, ledger=path)
    batches = [list(range(place, place + B)) for place in range(0, N, B)] if plan.sampling.takes_batches else None
    for inputs, labels in session.batches(data(), batches=batches, steps_per_pass=None if batches else steps):
        session.backward(nn.functional.cross_entropy(model(inputs), labels, reduction="none"))
        optimizer.step()
    return session


def test_training_with_it_is_charged_and_told(tmp_path: Path) -> None:
    session = trained(mechanism(TwoParties(1.5, 0.3)), tmp_path / "ledger")
    assert session.charged == [(PoissonSampled(B / N, 1.5), 30)]
    assert session.epsilon(1e-5) == epsilon([(PoissonSampled(B / N, 1.5), 30)], 1e-5)
    told = session.guarantee(1e-5)
    (condition,) = told.conditions
    assert condition.name == "third-party noise"
    assert f"{__name__}.TwoParties" in condition.sentence
    assert session.noise_monitor.values > 1000
    assert session.noise_monitor.ratio == pytest.approx(1, abs=0.1)
    session.close()
    assert read_ledger(tmp_path / "ledger").conditions == told.conditions


def test_calibration_and_schedules_know_it() -> None:
    found = mechanism(TwoParties(1.0, 0.3), steps=100).calibrate(epsilon=2.0, delta=1e-5)
    assert found.noise == TwoParties(found.noise_multiplier, 0.3)
    assert found.epsilon(1e-5) == pytest.approx(2.0, rel=1e-3)
    scheduled = mechanism(TwoParties(1.0), noise_schedule=(1.0, 2.0, 2.0), clip_schedule=(1.0, 1.0, 3.0))
    assert scheduled.composition() == [(PoissonSampled(B / N, 1.0), 1), (PoissonSampled(B / N, 2.0), 2)]
    assert [scheduled.at(step).noise_std for step in range(3)] == [C, 2 * C, 6 * C]
    trained(scheduled, steps=3).close()


def test_a_pair_without_a_proof_is_refused_with_the_cure() -> None:
    with pytest.raises(UnprovenMechanismError, match=r"Poisson, every record .*\. Use it with DisjointBatches"):
        mechanism(Remembers(1.0))
    proven = mechanism(Remembers(1.0), sampling=DisjointBatches())
    assert proven.event(2) == DisjointPass(1.0, 2)
    with pytest.raises(UnprovenMechanismError):
        replace(proven, sampling=PoissonSampling(0.1))


def test_the_state_of_a_run_is_its_own_and_sees_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[Memory] = []
    start = Remembers.start
    monkeypatch.setattr(Remembers, "start", lambda self, stream: states.append(start(self, stream)) or states[-1])
    for _ in range(2):
        trained(mechanism(Remembers(1.0), sampling=DisjointBatches())).close()
    assert [state.steps for state in states] == [list(range(N // B))] * 2


@pytest.mark.statistical
@pytest.mark.parametrize("kind", [OnePartyStaysAway, SameStream])
def test_training_ends_where_other_noise_runs_than_is_charged(kind: type[TwoParties]) -> None:
    with pytest.raises(NoiseMismatchError, match="times what is charged"):
        trained(mechanism(kind(1.5)), steps=80)


def verified(kind: type[TwoParties], **changes: Any) -> Verdict:
    torch.manual_seed(5)
    loader = DataLoader(data(), batch_size=B, shuffle=True)
    claimed = mechanism(kind(1.5), **changes)
    return hushgrad.verify(network(), loader, nn.CrossEntropyLoss(), claimed, resolution=0.05)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (TwoParties, {}),
        pytest.param(Remembers, {"sampling": DisjointBatches()}, marks=pytest.mark.slow),
    ],
)
def test_verification_passes(kind: type[TwoParties], changes: dict[str, Any]) -> None:
    """False alarm 1e-6 each."""
    verdict = verified(kind, **changes)
    assert verdict.passed, verdict.to_text()


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        (OnePartyStaysAway, "noise"),
        pytest.param(SameStream, "noise", marks=pytest.mark.slow),
        pytest.param(ChargedAsMore, "ledger", marks=pytest.mark.slow),
    ],
)
def test_verification_finds_a_bug_in_it(kind: type[TwoParties], part: str) -> None:
    verdict = verified(kind)
    assert part in {check.part for check in verdict.checks if not check.passed}
