import pytest

import hushgrad.accounting.calibration as calibration
from hushgrad.accounting import (
    Composition,
    Gaussian,
    PoissonSampled,
    calibrate_noise_multiplier,
    disjoint_passes,
    epsilon,
    poisson_steps,
)
from hushgrad.accounting.bounds import EpsilonBounds
from hushgrad.accounting.calibration import TOLERANCE
from hushgrad.errors import InvalidArgumentError, UnreachableTargetError


@pytest.mark.parametrize("accountant", ["saddle-point", "pld", "rdp"])
@pytest.mark.parametrize(
    ("target", "composition"),
    [
        (3.0, poisson_steps(0.01, 1000)),
        (0.1, poisson_steps(0.004, 500)),
        (20.0, poisson_steps(0.3, 5)),
        (1.0, poisson_steps(1.0, 30)),
        (8.0, disjoint_passes(10)),
        (0.5, disjoint_passes(1)),
    ],
)
def test_the_result_keeps_within_the_target_and_a_little_less_does_not(target, composition, accountant) -> None:  # type: ignore[no-untyped-def]
    """Guarantee: ε at the result is at most the target, and the result is within 2e-4 of the smallest such."""
    delta = 1e-5
    noise = calibrate_noise_multiplier(
        target_epsilon=target, target_delta=delta, composition=composition, accountant=accountant
    )
    assert epsilon(composition(noise), delta, accountant) <= target
    assert epsilon(composition(noise * (1 - TOLERANCE)), delta, accountant) > target


def test_any_composition_of_the_noise_multiplier_can_be_calibrated() -> None:
    def plan(noise_multiplier: float) -> Composition:
        return [(PoissonSampled(0.01, noise_multiplier), 200), (Gaussian(5 * noise_multiplier), 1)]

    noise = calibrate_noise_multiplier(target_epsilon=2.0, target_delta=1e-5, composition=plan)
    assert epsilon(plan(noise * (1 - TOLERANCE)), 1e-5) > 2.0 >= epsilon(plan(noise), 1e-5)


def test_few_evaluations_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = calibration.epsilon_of_group

    def counted(composition: Composition, delta: float, group_size: int, accountant: str) -> EpsilonBounds:
        asked.append(composition)
        return real(composition, delta, group_size, accountant)

    monkeypatch.setattr(calibration, "epsilon_of_group", counted)
    for target in (1.0, 3.0, 8.0):
        calibrate_noise_multiplier(target_epsilon=target, target_delta=1e-5, composition=poisson_steps(0.01, 1000))
    assert len(asked) <= 3 * 8


@pytest.mark.parametrize(("rate", "steps"), [(0.1, 100), (0.001, 10_000), (0.01, 50)])
def test_few_evaluations_suffice_for_large_targets(monkeypatch: pytest.MonkeyPatch, rate: float, steps: int) -> None:
    asked = []
    real = calibration.epsilon_of_group

    def counted(composition: Composition, delta: float, group_size: int, accountant: str) -> EpsilonBounds:
        asked.append(composition)
        return real(composition, delta, group_size, accountant)

    monkeypatch.setattr(calibration, "epsilon_of_group", counted)
    plan = poisson_steps(rate, steps)
    for target in (200.0, 1000.0):
        noise = calibrate_noise_multiplier(target_epsilon=target, target_delta=1e-5, composition=plan)
        assert epsilon(plan(noise), 1e-5) <= target < epsilon(plan(noise * (1 - TOLERANCE)), 1e-5)
    assert len(asked) <= 2 * 6


def test_an_enormous_target_gives_the_smallest_noise_multiplier_that_is_tried() -> None:
    assert calibrate_noise_multiplier(target_epsilon=1e9, target_delta=1e-5, composition=poisson_steps(0.5, 1)) == 0.01


def test_an_unreachable_target_says_what_can_be_reached_and_what_to_change() -> None:
    plan = poisson_steps(0.5, 10**6)
    least = epsilon(plan(calibration.LARGEST_NOISE_MULTIPLIER), 1e-12, "rdp")
    with pytest.raises(
        UnreachableTargetError, match=f"spends {least:.4g}, .*larger epsilon or delta.*accountant='saddle-point'"
    ):
        calibrate_noise_multiplier(target_epsilon=1e-9, target_delta=1e-12, composition=plan, accountant="rdp")


@pytest.mark.parametrize(
    ("target", "delta", "match"),
    [(0, 1e-5, "target_epsilon"), (-1, 1e-5, "target_epsilon"), (float("nan"), 1e-5, "target_epsilon"),
     (float("inf"), 1e-5, "target_epsilon"), ("1", 1e-5, "target_epsilon"), (1, 0, "target_delta"),
     (1, 1, "target_delta")],
)  # fmt: skip
def test_targets_out_of_range_are_refused(target: float, delta: float, match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        calibrate_noise_multiplier(target_epsilon=target, target_delta=delta, composition=poisson_steps(0.1, 1))


@pytest.mark.parametrize(("rate", "steps"), [(0, 1), (1.1, 1), (0.1, 0), (0.1, 1.0), (True, 1)])
def test_plans_out_of_range_are_refused(rate: float, steps: int) -> None:
    with pytest.raises(InvalidArgumentError):
        poisson_steps(rate, steps)
