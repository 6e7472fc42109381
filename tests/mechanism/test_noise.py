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
from hushgrad.accounting import DisjointPass, Event, Gaussian
from hushgrad.errors import InvalidArgumentError, NoiseMismatchError, ProtocolError, UnprovenMechanismError
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


def test_noise_that_gives_back_no_list_of_dense_tensors_ends_the_step() -> None:
    class Odd(Uniform):
        given: Any = None

        def event(self, sampling: SamplingScheme, pass_index: int = 0) -> Event:
            return sampling.event(1.0, pass_index)

        def updates(self, state: Any, totals: Sequence[Noised], *, sensitivity: float, divisor: float) -> Any:
            return self.given

    for given in (None, (part for part in [torch.zeros(2)]), [torch.zeros(2).to_sparse()], [[0.0, 0.0]]):
        Odd.given = given
        mechanism = Mechanism(noise=Odd(), sampling=POISSON, **REST)
        with pytest.raises(NoiseMismatchError, match="Odd gave back"):
            mechanism.updates(None, [Noised(torch.zeros(2), Address(0))])


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf"), None, True])
def test_a_std_that_no_noise_could_be_measured_against_is_refused(std: Any) -> None:
    class Silent(GaussianNoise):
        def std(self, sensitivity: float) -> float:
            return std  # type: ignore[no-any-return]

    with pytest.raises(InvalidArgumentError, match=r"std\(\) of Silent"):
        Mechanism(noise=Silent(1.0), sampling=POISSON, **REST)
    Mechanism(noise=GaussianNoise(0.0), sampling=POISSON, **REST)  # no noise on purpose


def test_noise_that_keeps_its_multiplier_is_neither_scheduled_nor_calibrated() -> None:
    class Fixed(GaussianNoise):
        def with_noise_multiplier(self, noise_multiplier: float) -> Self:
            return self

    own = Mechanism(noise=Fixed(1.0), sampling=POISSON, noise_schedule=(1.0, 3.0), **REST)
    for ask in (lambda: own.at(1), own.composition, lambda: own.calibrate(epsilon=1, delta=1e-5)):
        with pytest.raises(InvalidArgumentError, match=r"with_noise_multiplier\(.*multiplier 1"):
            ask()


def test_a_class_derived_from_gaussian_noise_keeps_its_fields_under_another_multiplier() -> None:
    assert Misshapen(1.0, "flat").with_noise_multiplier(2.0) == Misshapen(2.0, "flat")


@pytest.mark.parametrize("kind", [GaussianNoise, PoissonSampling])
def test_a_derived_class_is_named_in_the_guarantee_wherever_it_says_it_comes_from(kind: type) -> None:
    derived = type("Derived", (kind,), {"__module__": "hushgrad.more"})
    noise = derived(1.0) if kind is GaussianNoise else GaussianNoise(1.0)
    sampling = derived(0.1) if kind is PoissonSampling else POISSON
    model = nn.Linear(2, 2)
    mechanism = Mechanism(noise=noise, sampling=sampling, **REST)
    session = privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism)
    assert "hushgrad.more.Derived" in str(session.guarantee(1e-5))
    session.close()


@dataclass(frozen=True)
class Counted(PoissonSampling):
    """A scheme whose event says something else of passes than it does."""

    given: Any = None

    def event(self, noise_multiplier: float, pass_index: int = 0) -> Any:
        return self.given(noise_multiplier, pass_index)


class InPasses(Counted):
    counts_in = "passes"


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Counted, lambda noise, index: DisjointPass(noise, index)),
        (Counted, lambda noise, index: DisjointPass(noise, 0)),
        (InPasses, lambda noise, index: Gaussian(noise)),
        (InPasses, lambda noise, index: DisjointPass(noise, 0)),
        (InPasses, lambda noise, index: DisjointPass(noise, index + 1)),
    ],
)
def test_a_charge_that_is_counted_otherwise_than_the_sampling_cannot_be_made_a_mechanism(kind: Any, given: Any) -> None:
    """Else many steps would be charged as one pass, or a budget in passes would be spent in each step."""
    with pytest.raises(InvalidArgumentError, match="is counted in"):
        DPSGD(noise_multiplier=1.0, sampling=kind(0.1, given), **REST)


def test_a_loop_of_ones_own_is_never_charged_in_passes() -> None:
    scheme = InPasses(0.1, DisjointPass)  # its author forgot `can_be_declared = False`
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, DPSGD(noise_multiplier=1.0, sampling=scheme, **REST))
    with pytest.raises(ProtocolError, match="where a pass ends"):
        session.backward(model(torch.ones(2, 2)).sum(1))
    session.close()
