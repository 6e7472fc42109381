"""What one example adds to an update: right ones pass, and each mistake fails the check that is about it."""

from __future__ import annotations

import math

import pytest
import torch
from updates import SIGMA, B, C, Update, measured

from hushgrad.checks.verification.update.contributions import Contributions, distance
from hushgrad.checks.verification.verdict import failed_codes


def failed(update: Update) -> set[str]:
    return failed_codes(measured(update)[0].checks.values())


@pytest.mark.statistical
def test_a_right_update_passes_and_its_sensitivity_and_noise_are_measured() -> None:
    """Fixed seeds; false alarm 1e-6."""
    found, noise = measured(Update())
    assert not failed_codes(found.checks.values())
    assert found.sensitivity == pytest.approx(C / B, rel=1e-3)
    assert found.noise_multiplier(noise.std) == pytest.approx(SIGMA, rel=0.05)
    assert not found.noise_varies
    assert [signal.cause for signal in found.fits] == [None]


WRONG = {
    "clipped to more": (Update(limit=1.5 * C), {"sensitivity-bound", "sensitivity-formula"}),
    "clipped to less": (Update(limit=0.5 * C), {"sensitivity-formula"}),
    "NaN let through": (Update(selects=False), {"sensitivity-non-finite"}),
    "the last batch kept": (Update(remembers=True), {"sensitivity-state"}),
    "noise of the number of examples": (Update(std=lambda n: SIGMA * C * max(n, 1)), {"noise-beside"}),
    "no noise for an empty draw": (Update(std=lambda n: SIGMA * C if n else 0.0), {"noise-empty-draw"}),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", WRONG)
def test_each_mistake_fails_the_check_that_is_about_it(name: str) -> None:
    """Fixed seeds."""
    update, codes = WRONG[name]
    assert codes <= failed(update)


@pytest.mark.statistical
def test_an_update_that_refuses_what_is_not_finite_or_empty_is_told_so() -> None:
    """Fixed seeds."""

    def strict(gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not all(len(value) and value.isfinite().all() for value in gradients.values()):
            raise ValueError
        return Update()(gradients)

    found, _ = measured(strict)
    assert "refused (ValueError)" in found.checks["sensitivity-non-finite"].measured
    assert "noise-empty-draw" not in found.checks
    assert any("empty draw was not tested" in note for note in found.notes)


def test_noise_over_sensitivity_takes_the_least_noise_that_was_seen() -> None:
    found = Contributions({}, 0.5, (), (), {1: 0.4, 48: 1.0, 96: 1.0}, 0.0)
    assert found.noise_multiplier(1.0) == pytest.approx(0.8)
    assert found.noise_varies
    assert Contributions({}, 0.0, (), (), {1: 1.0}, 0.0).noise_multiplier(1.0) == math.inf


def test_the_distance_of_updates_is_over_all_parameters() -> None:
    one, other = ({"a": torch.tensor([x]), "b": torch.tensor([y])} for x, y in ((0.0, 0.0), (3.0, 4.0)))
    assert distance(one, other) == 5
