"""`verify` of noise that is correlated between steps: it is whitened first, and planted mistakes are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import FlatClipping, GaussianNoise, Mechanism, verify
from hushgrad.mechanism import CorrelatedNoise
from hushgrad.sampling import CyclicPoissonSampling, FixedOrderBatches, SamplingScheme
from hushgrad.sampling.loader import _Planner
from hushgrad.sampling.poisson import PoissonSampler
from hushgrad.strategies.buffered import BufferedStrategy
from hushgrad.strategies.optimal_banded import optimal_banded
from hushgrad.strategies.strategy import Strategy

BANDED, BUFFERED = optimal_banded(50, 8), BufferedStrategy((0.95, 0.5), (0.2, 0.3))
CYCLIC, ORDERED = CyclicPoissonSampling(0.1, 8), FixedOrderBatches(10)


def verdict(strategy: Strategy, sampling: SamplingScheme, noise: float = 1.1) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3))
    data = TensorDataset(torch.randn(80, 6), torch.randint(0, 3, (80,)))
    plan = Mechanism(
        noise=CorrelatedNoise(noise, strategy), clipping=FlatClipping(0.7), sampling=sampling, expected_batch_size=8
    )
    return verify(model, DataLoader(data, batch_size=8), nn.CrossEntropyLoss(), plan, resolution=0.1)


def failed(found: Any) -> set[str]:
    return {check.code for check in found.checks if not check.passed}


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("strategy", "sampling"),
    [
        (BANDED, CYCLIC),
        pytest.param(BANDED, ORDERED, marks=pytest.mark.slow),
        pytest.param(BUFFERED, ORDERED, marks=pytest.mark.slow),
    ],
)
def test_right_training_passes(strategy: Strategy, sampling: SamplingScheme) -> None:
    """False-alarm probability 1e-6 each (the default of verify)."""
    found = verdict(strategy, sampling)
    assert not failed(found), found
    assert "sampling-separation" in {check.code for check in found.checks}


@pytest.mark.slow
@pytest.mark.statistical
def test_independent_noise_where_correlated_noise_is_charged_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def updates(self: Any, state: Any, totals: Any, *, sensitivity: float, divisor: float) -> list[Tensor]:
        return GaussianNoise(self.noise_multiplier).updates(
            state.stream, totals, sensitivity=sensitivity, divisor=divisor
        )

    monkeypatch.setattr(CorrelatedNoise, "updates", updates)
    assert "noise-across-steps" in failed(verdict(BANDED, CYCLIC))


@pytest.mark.slow
def test_plain_poisson_sampling_under_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader refuses it; where that is switched off, too, the draws show it."""
    monkeypatch.setattr(CyclicPoissonSampling, "sampler", lambda self, count, stream, batches=None: PoissonSampler(
        count, self.rate, stream
    ))  # fmt: skip
    with pytest.raises(hushgrad.errors.DuplicateRecordError):
        verdict(BANDED, CYCLIC)
    monkeypatch.setattr(_Planner, "_require_separation", lambda *_: None)
    assert "sampling-separation" in failed(verdict(BANDED, CYCLIC))
