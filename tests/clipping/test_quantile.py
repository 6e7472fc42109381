"""Quantile-adaptive clipping: the norm finds the quantile, and gradients and count together cost what σ says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tests.extension.test_noise_mechanism import TwoParties
from torch import Tensor

from hushgrad import DPSGD, ClipRule, Mechanism, PoissonSampling, QuantileClipping
from hushgrad.accounting import PoissonSampled
from hushgrad.accounting.accountants import epsilon
from hushgrad.clipping.adaptation import gradient_noise_multiplier
from hushgrad.clipping.bound import BoundRule
from hushgrad.clipping.known import require_clip_rule
from hushgrad.clipping.quantile import LEAST, MOST
from hushgrad.errors import InvalidArgumentError, UnprovenMechanismError

RULE = QuantileClipping(1.0)


def test_gradients_and_count_together_are_one_release_of_the_noise_multiplier() -> None:
    """Guarantee: gradients and count together cost a step what the noise multiplier says, and an example that is not
    finite counts as one above the norm.

    1/σ² = (C / (σ_g C))² + (½ / σ_b)², by the noise that the bound rule gives each of them; σ_g is the closed form.
    """
    for sigma, count_noise, norm in ((1.0, 5.0, 3.0), (0.5, 0.3, 1e-3), (2.0, 1.01, 7.0)):
        rule = QuantileClipping(norm, count_noise_multiplier=count_noise)
        clip = BoundRule(rule, ["a"], sizes={"a": 10}, noise_multiplier=sigma)
        assert clip.count_relative is not None
        gradient_std, count_std = sigma * norm * clip.relative["a"], sigma * norm * clip.count_relative
        assert count_std == pytest.approx(count_noise, rel=1e-12)
        assert gradient_std / norm == pytest.approx((sigma**-2 - (2 * count_noise) ** -2) ** -0.5, rel=1e-12)
        assert gradient_std / norm == pytest.approx(gradient_noise_multiplier(sigma, count_noise), rel=1e-12)
        assert math.hypot(norm / gradient_std, 0.5 / count_std) == pytest.approx(1 / sigma, rel=1e-12)
    norms_GB = torch.tensor([[0.0, 1.0, 1.5, math.inf, math.nan]])
    assert RULE.signs(norms_GB).tolist() == [0.5, 0.5, -0.5, -0.5, -0.5]
    assert gradient_noise_multiplier(1.0, 5.0) == pytest.approx(1.00504, abs=1e-5)


def test_the_charge_is_that_of_flat_clipping() -> None:
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=RULE, sampling=PoissonSampling(0.01), expected_batch_size=100, steps=500
    )
    assert mechanism.epsilon(1e-5) == epsilon([(PoissonSampled(0.01, 1.0), 500)], 1e-5)
    calibrated = mechanism.calibrate(epsilon=3.0, delta=1e-5)  # tries multipliers above 2σ_b on its way
    assert calibrated.epsilon(1e-5) <= 3.0


def test_the_norm_moves_as_in_the_paper_by_the_expected_batch_size() -> None:
    rule = QuantileClipping(2.0, quantile=0.7, learning_rate=0.3)
    assert rule.next_norm(10.0, 100.0) == pytest.approx(2 * math.exp(-0.3 * (0.6 - 0.7)), rel=1e-12)
    assert rule.next_norm(-35.0, 100.0) == pytest.approx(2 * math.exp(-0.3 * (0.15 - 0.7)), rel=1e-12)
    assert rule.next_norm(1e9, 1.0) == pytest.approx(LEAST)
    assert rule.next_norm(-1e9, 1.0) == pytest.approx(MOST)


def test_the_count_of_factors_is_the_count_of_the_reference() -> None:
    gradients = {"a": torch.randn(30, 4, dtype=torch.float64), "b": torch.randn(30, 2, dtype=torch.float64)}
    norms = torch.cat([gradients["a"], gradients["b"]], 1).norm(dim=1, keepdim=True).T
    rule = QuantileClipping(float(norms.quantile(0.8)))
    assert rule.reference_count(gradients) == float(rule.signs(norms).sum())
    assert rule.reference_count(gradients) > 5


@pytest.mark.statistical
@pytest.mark.parametrize(("quantile", "first"), [(0.7, 0.1), (0.25, 30.0)])
def test_after_60_steps_the_norm_is_within_5_percent_of_the_quantile_of_a_law_with_two_modes(
    quantile: float, first: float
) -> None:
    """B = 1,000, σ_b = 50. Near the quantile the norm's logarithm has a standard error of 1%: five of them."""
    random = np.random.default_rng(7)

    def norms(count: int) -> Any:
        return np.exp(np.where(random.random(count) < 0.5, 0.0, math.log(4)) + 0.2 * random.standard_normal(count))

    rule = QuantileClipping(first, quantile=quantile, count_noise_multiplier=50.0)
    for _ in range(60):
        drawn = norms(random.binomial(100_000, 0.01))
        count = float(rule.signs(torch.from_numpy(drawn).unsqueeze(0)).sum()) + 50.0 * random.standard_normal()
        rule = rule.with_norm(rule.next_norm(count, 1000.0))
    assert rule.current_norm == pytest.approx(float(np.quantile(norms(1_000_000), quantile)), rel=0.05)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"max_grad_norm": 0}, "max_grad_norm: must be > 0"),
        ({"max_grad_norm": 1, "quantile": 1}, r"quantile: must be in \(0, 1\)"),
        ({"max_grad_norm": 1, "learning_rate": 0}, "learning_rate: must be > 0"),
        ({"max_grad_norm": 1, "count_noise_multiplier": -1}, "count_noise_multiplier: must be > 0"),
    ],
)
def test_a_constant_out_of_range_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        QuantileClipping(**settings)


def test_a_count_with_too_little_noise_for_the_charge_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"alone costs more than the noise multiplier 10 .* above 5"):
        BoundRule(RULE, ["a"], noise_multiplier=10.0)


def test_what_would_set_the_norm_or_share_noise_beside_the_count_is_refused() -> None:
    settings: dict[str, Any] = {"clipping": RULE, "sampling": PoissonSampling(0.1), "expected_batch_size": 10}
    with pytest.raises(InvalidArgumentError, match="would each set the clip norm"):
        DPSGD(noise_multiplier=1.0, clip_schedule=(1.0, 0.5), **settings)
    with pytest.raises(UnprovenMechanismError, match="it is not known what"):
        Mechanism(noise=TwoParties(1.0), **settings)


@dataclass(frozen=True)
class Counting(ClipRule):
    """A rule of somebody else's that releases a count."""

    sensitivity: float = 1.0
    adaptation: Any = RULE

    def limits(self, count: int) -> Any:
        return (1.0,) * count

    def factors(self, norms_GB: Tensor) -> Tensor:
        return RULE.factors(norms_GB)

    def scaled(self, factor: float) -> Any:
        return self

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return RULE.reference(per_example)


def test_a_count_of_somebody_elses_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="has a count of its own that is released"):
        require_clip_rule(Counting())
