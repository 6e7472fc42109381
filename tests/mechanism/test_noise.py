"""A noise mechanism in general: the pair with a sampling has a proof, and what runs has the form of what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from hushgrad import (
    DPSGD,
    DisjointBatches,
    FlatClipping,
    GaussianNoise,
    Mechanism,
    NoiseMechanism,
    PoissonSampling,
    SamplingScheme,
    privatize,
)
from hushgrad.accounting import Event
from hushgrad.errors import InvalidArgumentError, NoiseMismatchError, UnprovenMechanismError
from hushgrad.mechanism.noise import require_noise
from hushgrad.noise.gaussian import Noised
from hushgrad.randomness import Address, KeyStream

REST: dict[str, Any] = {"clipping": FlatClipping(0.5), "expected_batch_size": 4}
POISSON = PoissonSampling(0.1)


@dataclass(frozen=True)
class Uniform(NoiseMechanism):
    """Noise that is nobody's: what it costs is known with no sampling."""

    noise_multiplier: float = 1.0

    def std(self, sensitivity: float) -> float:
        return self.noise_multiplier * sensitivity

    def start(self, stream: KeyStream) -> None:
        return None

    def updates(self, state: Any, totals: Sequence[Noised], *, sensitivity: float, divisor: float) -> list[Tensor]:
        return [part.total / divisor for part in totals]

    def event(self, sampling: SamplingScheme, pass_index: int = 0) -> Event:
        raise self.unproven(sampling, cure="Take GaussianNoise")

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        return type(self)(noise_multiplier)


@pytest.mark.parametrize("sampling", [POISSON, DisjointBatches()], ids=["poisson", "disjoint"])
def test_a_pair_of_noise_and_sampling_without_a_proof_cannot_be_made_a_mechanism(sampling: SamplingScheme) -> None:
    with pytest.raises(UnprovenMechanismError, match=r"it is not known what Uniform .* costs") as caught:
        Mechanism(noise=Uniform(), sampling=sampling, **REST)
    assert caught.value.cure == "Take GaussianNoise"
    assert sampling.describe() in caught.value.what


def test_what_is_no_noise_and_what_is_no_event_are_refused() -> None:
    @dataclass(frozen=True)
    class NoEvent(Uniform):
        def event(self, sampling: SamplingScheme, pass_index: int = 0) -> Event:
            return None  # type: ignore[return-value]

    with pytest.raises(InvalidArgumentError, match=r"got float\. Give GaussianNoise"):
        Mechanism(noise=1.0, sampling=POISSON, **REST)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="must be an Event, got NoneType"):
        Mechanism(noise=NoEvent(), sampling=POISSON, **REST)
    with pytest.raises(InvalidArgumentError, match="noise_multiplier: must be >= 0"):
        Mechanism(noise=NoEvent(-1.0), sampling=POISSON, **REST)
    assert require_noise(GaussianNoise(1)) == GaussianNoise(1.0)


def test_dpsgd_is_the_mechanism_with_gaussian_noise() -> None:
    schedules: dict[str, Any] = {"noise_schedule": (1.0, 2.0, 2.0), "clip_schedule": (1.0, 0.5, 3.0)}
    plain = DPSGD(noise_multiplier=1.5, sampling=POISSON, **REST, **schedules)
    general = Mechanism(noise=GaussianNoise(1.5), sampling=POISSON, **REST, **schedules)
    assert plain.noise == general.noise
    assert plain.noise_multiplier == general.noise_multiplier
    assert plain.composition() == general.composition()
    for step in range(3):
        assert plain.at(step).noise_std == general.at(step).noise_std
        assert plain.at(step).event() == general.at(step).event()
    assert general.calibrate(epsilon=1, delta=1e-5).noise == plain.calibrate(epsilon=1, delta=1e-5).noise


def test_a_changed_mechanism_has_the_noise_that_it_says() -> None:
    plain = DPSGD(noise_multiplier=1.5, sampling=POISSON, **REST)
    general = Mechanism(noise=GaussianNoise(1.5), sampling=POISSON, **REST)
    assert replace(plain, noise_multiplier=2).noise == GaussianNoise(2.0)
    assert plain.with_noise_multiplier(2) == replace(plain, noise_multiplier=2)
    assert general.with_noise_multiplier(2) == replace(general, noise=GaussianNoise(2))
    assert replace(general, noise=GaussianNoise(2)).noise_multiplier == 2
    assert type(plain.with_noise_multiplier(2)) is DPSGD
    assert repr(plain).startswith("DPSGD(noise_multiplier=1.5, clipping=")


def test_gaussian_noise_says_what_it_is() -> None:
    noise = GaussianNoise(1.5)
    assert noise.describe() == "Gaussian noise of standard deviation 1.5 times the sensitivity"
    assert "1.5" in Uniform(1.5).describe()
    assert noise.std(2.0) == 3.0
    for value in (-1, float("nan"), "1", True):
        with pytest.raises(InvalidArgumentError, match="noise_multiplier"):
            GaussianNoise(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Misshapen(GaussianNoise):
    """Gaussian noise that gives back another form than it was given."""

    how: str = ""

    def updates(
        self, state: KeyStream, totals: Sequence[Noised], *, sensitivity: float, divisor: float
    ) -> list[Tensor]:
        right = super().updates(state, totals, sensitivity=sensitivity, divisor=divisor)
        return {
            "fewer": right[:-1],
            "flat": [part.flatten() for part in right],
            "narrow": [part.bfloat16() for part in right],
        }[self.how]


@pytest.mark.parametrize("how", ["fewer", "flat", "narrow"])
def test_noise_that_gives_back_another_form_ends_the_step(how: str) -> None:
    mechanism = Mechanism(noise=Misshapen(1.0, how), sampling=POISSON, **REST)
    stream = KeyStream.fixed_for_tests(0)
    with pytest.raises(NoiseMismatchError, match="Misshapen gave back"):
        mechanism.updates(mechanism.noise.start(stream), [Noised(torch.zeros(2, 3), Address(0))])


def test_noise_of_somebody_else_is_named_in_the_guarantee() -> None:
    model = nn.Linear(2, 2)
    own = Mechanism(noise=Misshapen(1.0), sampling=POISSON, **REST)
    session = privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), own)
    assert "third-party noise" in [condition.name for condition in session.guarantee(1e-5).conditions]
    assert f"{__name__}.Misshapen" in str(session.guarantee(1e-5))
    session.close()
    ours = Mechanism(noise=GaussianNoise(1.0), sampling=POISSON, **REST)
    session = privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), ours)
    assert [condition.name for condition in session.guarantee(1e-5).conditions if "third" in condition.name] == []
    session.close()
