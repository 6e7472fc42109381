"""`verify_update`: what it promises about itself, its power, its verdicts as text and JSON, and bad inputs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import hushgrad
from hushgrad.checks.verification.verdict import Verdict
from hushgrad.errors import InvalidArgumentError

SIGMA, C, B = 1.3, 0.6, 50


def update_with(noise_std: float) -> Any:
    def update(gradients: Tensor) -> Tensor:
        norms = gradients.flatten(1).norm(dim=1)
        factors = torch.where(norms.isfinite(), (C / norms.clamp(min=1e-30)).clamp(max=1), 0.0)
        shape = (-1, *[1] * (gradients.ndim - 1))
        kept = torch.where(norms.isfinite().reshape(shape), gradients, 0.0)
        total = (kept * factors.reshape(shape)).sum(0)
        return (total + noise_std * torch.randn_like(total)) / B

    return update


def verified(noise_std: float = SIGMA * C, **changes: Any) -> Verdict:
    torch.manual_seed(3)
    arguments = {"noise_multiplier": SIGMA, "max_grad_norm": C, "expected_batch_size": B, **changes}
    return hushgrad.verify_update(update_with(noise_std), **arguments)


@pytest.mark.statistical
def test_every_check_states_its_sample_size_false_alarm_probability_and_power() -> None:
    """Guarantee: the verdict's checks state their sample size, false-alarm probability and power, and a correct update
    fails with a probability of at most `false_alarm`.
    """
    verdict = verified(false_alarm=1e-4)
    assert verdict.passed
    assert verdict.false_alarm <= 1e-4
    assert len({check.code for check in verdict.checks}) == len(verdict.checks)
    for check in verdict.checks:
        assert check.sample_size > 0
        assert 0 <= check.false_alarm < 1e-4
        assert check.power
        assert check.code.startswith(check.part)
        assert check.claim
        assert check.measured


@pytest.mark.statistical
@pytest.mark.parametrize(("error", "resolution"), [(0.01, 0.01), pytest.param(0.005, 0.005, marks=pytest.mark.slow)])
def test_a_small_error_of_the_noise_is_found_at_a_million_parameters(error: float, resolution: float) -> None:
    """Each is missed with a probability of 1e-3 by design, here with a fixed seed."""
    for sign in (-1, 1):
        verdict = verified((1 + sign * error) * SIGMA * C, parameters=(1000, 1000), resolution=resolution)
        assert not verdict.passed
        assert verdict.causes[0].code == "noise-level"
    assert verified(parameters=(1000, 1000), resolution=resolution).passed


@pytest.mark.statistical
def test_measured_values_are_those_of_the_program() -> None:
    verdict = verified(0.5 * SIGMA * C)
    assert verdict.measured.noise_multiplier == pytest.approx(SIGMA / 2, rel=0.01)
    assert verdict.measured.sensitivity == pytest.approx(C, rel=1e-3)
    assert verdict.claimed.noise_multiplier == SIGMA
    assert "LESS PRIVATE THAN CHARGED" in str(verdict)


@pytest.mark.statistical
def test_a_verdict_is_plain_json_and_a_table() -> None:
    for verdict in (verified(), verified(0.0)):
        value = json.loads(verdict.to_text())
        assert value["passed"] is verdict.passed
        assert len(value["checks"]) == len(verdict.checks)
        for width in (80, 160):
            screen = verdict.text(width)
            assert screen.startswith("PASSED" if verdict.passed else "FAILED")
            assert all(len(line) <= width for line in screen.splitlines())
            words = "".join(screen.split())
            assert all("".join(check.part.split()) in words for check in verdict.checks)


def test_a_loss_that_is_summed_is_not_divided() -> None:
    torch.manual_seed(3)

    def update(gradients: Tensor) -> Tensor:
        return B * update_with(SIGMA * C)(gradients)

    verdict = hushgrad.verify_update(
        update, noise_multiplier=SIGMA, max_grad_norm=C, expected_batch_size=B, loss_reduction="sum"
    )
    assert verdict.passed, str(verdict)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0},
        {"max_grad_norm": -1},
        {"expected_batch_size": "50"},
        {"loss_reduction": "average"},
        {"resolution": 0},
        {"false_alarm": 2},
        {"charged_noise_multiplier": float("nan")},
        {"parameters": "weights"},
        {"parameters": (0, 3)},
        {"batch": torch.zeros(2, 3)},
    ],
)
def test_bad_arguments_are_typed_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        verified(**changes)


def test_an_update_of_another_shape_is_a_typed_error() -> None:
    arguments: dict[str, Any] = {"noise_multiplier": SIGMA, "max_grad_norm": C, "expected_batch_size": B}
    with pytest.raises(InvalidArgumentError, match="without their first dimension"):
        hushgrad.verify_update(lambda gradients: gradients, **arguments)
    with pytest.raises(InvalidArgumentError, match="floating-point"):
        hushgrad.verify_update(lambda gradients: None, **arguments)
    with pytest.raises(InvalidArgumentError, match="must be a function"):
        hushgrad.verify_update(3, **arguments)  # type: ignore[arg-type]
