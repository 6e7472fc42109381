"""Verification of each clip rule: right ones pass, and the silent failures that are known of them are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import (
    DPSGD,
    AutomaticClipping,
    ClipRule,
    GroupwiseClipping,
    PerSampleAdaptiveClipping,
    PoissonSampling,
    QuantileClipping,
)
from hushgrad.checks.verification.verdict import Verdict
from hushgrad.clipping.bound import BoundRule
from hushgrad.mechanism import Mechanism
from hushgrad.session.adaptive_norm import AdaptiveNorm
from hushgrad.session.update import Update

GROUPS = GroupwiseClipping(by=("0", "2"), norms=(0.5, 0.1), noise="equal-budget")
QUANTILE = QuantileClipping(0.5, count_noise_multiplier=1.0)
RULES = {
    "automatic": AutomaticClipping(0.5),
    "per-sample adaptive": PerSampleAdaptiveClipping(0.5),
    "per layer": GroupwiseClipping(0.5),
    "groups with noise of their own": GROUPS,
    "quantile": QUANTILE,
}


def mechanism(rule: ClipRule) -> DPSGD:
    return DPSGD(noise_multiplier=1.1, clipping=rule, sampling=PoissonSampling(0.1), expected_batch_size=20)


def loader() -> DataLoader[Any]:
    torch.manual_seed(6)
    data = TensorDataset(3 * torch.randn(200, 8), torch.randint(0, 3, (200,)))
    return DataLoader(data, batch_size=20, shuffle=True)


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3))


def verified(rule: ClipRule, resolution: float) -> Verdict:
    return hushgrad.verify(network(), loader(), nn.CrossEntropyLoss(), mechanism(rule), resolution=resolution)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("name", RULES)
def test_a_rule_of_hushgrads_is_verified(name: str) -> None:
    """False-alarm probability 1e-6."""
    verdict = verified(RULES[name], 0.05)
    assert verdict.passed, str(verdict)
    assert verdict.measured.sensitivity is not None
    assert verdict.measured.sensitivity <= RULES[name].sensitivity * (1 + 1e-5)
    assert verdict.measured.sensitivity > 0.98 * RULES[name].sensitivity


# Planted bugs ---------------------------------------------------------------------------------------------------------


def gamma_is_scaled_with_the_batch(patch: pytest.MonkeyPatch) -> None:
    factors = BoundRule.factors
    patch.setattr(BoundRule, "factors", lambda self, n_GB: factors(self, n_GB / n_GB.shape[1]) / n_GB.shape[1])


def noise_of_a_group_is_drawn_by_its_own_norm_alone(patch: pytest.MonkeyPatch) -> None:
    made = BoundRule.__init__

    def blind(self: BoundRule, *given: Any, **named: Any) -> None:
        made(self, *given, **named)
        limits = zip(self.groups, self.limits, strict=True)
        self.relative = {name: limit / self.sensitivity for group, limit in limits for name in group}

    patch.setattr(BoundRule, "__init__", blind)


def the_count_gets_no_noise(patch: pytest.MonkeyPatch) -> None:
    noised = Update._updates

    def bare(self: Update, trained: Any, sums: Any, number: int, of: Mechanism, chosen: Any) -> Any:
        counted = self.norm._signs
        count = torch.zeros(1, dtype=torch.float64) if counted is None else counted.reshape(1).clone()
        return noised(self, trained, sums, number, of, chosen)[0], count / of.divisor

    patch.setattr(Update, "_updates", bare)


def the_count_is_divided_by_the_batch_that_was_drawn(patch: pytest.MonkeyPatch) -> None:
    take = AdaptiveNorm.take
    patch.setattr(AdaptiveNorm, "take", lambda self, device: 20 / max(self.counted, 1) * take(self, device))


def the_noise_is_of_another_steps_norm(patch: pytest.MonkeyPatch) -> None:
    write = Update.write
    patch.setattr(
        Update,
        "write",
        lambda self, of, step: write(self, of.with_clipping(of.clipping.with_norm(of.sensitivity / 2)), step),
    )


def the_count_is_not_charged(patch: pytest.MonkeyPatch) -> None:
    made = BoundRule.__init__

    def free(self: BoundRule, *given: Any, **named: Any) -> None:
        made(self, *given, **named)
        self.relative = dict.fromkeys(self.relative, 1.0)

    patch.setattr(BoundRule, "__init__", free)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(
    ("plant", "rule", "code"),
    [
        (gamma_is_scaled_with_the_batch, AutomaticClipping(0.5, 0.1), "sensitivity-additive"),
        (noise_of_a_group_is_drawn_by_its_own_norm_alone, GROUPS, "sensitivity-bound"),
        (the_count_gets_no_noise, QUANTILE, "noise-blocks"),
        (the_count_is_divided_by_the_batch_that_was_drawn, QUANTILE, "sensitivity-additive"),
        (the_noise_is_of_another_steps_norm, QUANTILE, "sensitivity-bound"),
        (the_count_is_not_charged, QUANTILE, "sensitivity-bound"),
    ],
)
def test_a_silent_failure_that_is_planted_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], rule: ClipRule, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    verdict = verified(rule, 0.5)
    assert code in {check.code for check in verdict.failed}
