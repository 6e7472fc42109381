"""From measurements to the mistake that explains them: the likeliest first, and none for a right update."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from updates import BELIEF, SIGMA, B, C, Gradients, Update, measured

from hushgrad.checks.verification.mistakes.explain import charge_causes, diagnose
from hushgrad.checks.verification.verdict import Cause


def causes(update: object) -> list[Cause]:
    contributions, noise = measured(update)  # type: ignore[arg-type]
    return diagnose(BELIEF, noise, contributions)


def batch_clipped(gradients: Gradients) -> Gradients:
    total = {name: value.sum(0) for name, value in gradients.items()}
    norm = torch.cat([value.flatten() for value in total.values()]).norm()
    return {name: (value * min(1.0, C / max(float(norm), 1e-30)) + noise(value)) / B for name, value in total.items()}


def noise(value: Tensor) -> Tensor:
    return SIGMA * C * torch.randn_like(value)


def weighted(gradients: Gradients, factors: Callable[[Tensor], Tensor]) -> Gradients:
    """Weigh each example by a factor that is made of all norms."""
    flat = torch.cat([value.flatten(1) for value in gradients.values()], 1)
    factors_B = factors(flat.norm(dim=1).clamp(min=1e-30)).nan_to_num(0, 0, 0)
    found = {}
    for name, value in gradients.items():
        total = (value.nan_to_num(0, 0, 0) * factors_B.reshape(-1, *[1] * (value.ndim - 1))).sum(0)
        found[name] = (total + noise(total)) / B
    return found


MISTAKES = {
    "state-kept": Update(remembers=True),
    "clip-norm-differs": Update(limit=2.5 * C),
    "batch-clipped": batch_clipped,
    "not-divided": Update(divisor=1.0),
    "noise-level": Update(std=lambda n: 1.2345 * SIGMA * C),
    "noise-depends-on-data": Update(std=lambda n: SIGMA * C * (1 + 0.01 * n)),
    "empty-draw-without-noise": Update(std=lambda n: SIGMA * C if n else 0.0),
    "sensitivity-exceeded": lambda gradients: weighted(gradients, lambda norms: (C / norms.roll(1)).clamp(max=1.0)),
    "examples-interact": lambda gradients: weighted(gradients, lambda norms: C / (norms + 0.7 * C)),
    "non-finite-poisons": Update(selects=False),
}


@pytest.mark.statistical
@pytest.mark.parametrize("code", MISTAKES)
def test_the_likeliest_mistake_is_the_one_that_was_made(code: str) -> None:
    """Fixed seeds. The zoo of planted updates has many more."""
    assert causes(MISTAKES[code])[0].code == code


@pytest.mark.statistical
def test_a_right_update_has_no_cause() -> None:
    """Fixed seeds; false alarm 1e-6."""
    assert causes(Update()) == []


CHARGED = {
    "charged-sigma-over-batch": SIGMA / B,
    "charged-sigma-times-clip-norm": SIGMA * C,
    "charged-sigma-over-clip-norm": SIGMA / C,
    "charged-sigma-times-batch": SIGMA * B,
    "charged-std-of-update": SIGMA * C / B,
    "charged-variance": SIGMA**2,
    "charged-root": SIGMA**0.5,
    "charged-root-of-batch": SIGMA / B**0.5,
    "charged-sigma-times-root-of-batch": SIGMA * B**0.5,
}


@pytest.mark.parametrize("code", CHARGED)
def test_what_was_charged_in_place_of_the_noise_multiplier_is_named(code: str) -> None:
    (cause,) = charge_causes(BELIEF, CHARGED[code], SIGMA)
    assert cause.code == code
    assert "give the accountant σ" in cause.cure


def test_an_unknown_charge_says_its_factor() -> None:
    (cause,) = charge_causes(BELIEF, 1.2345 * SIGMA, SIGMA)
    assert (cause.code, "1.234" in cause.mistake) == ("charged-other", True)
