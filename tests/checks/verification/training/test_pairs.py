"""`verify` passes for clip rules, samplings and noise of different kinds together."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import (
    AutomaticClipping,
    BallsInBinsSampling,
    ClipRule,
    CorrelatedNoise,
    CyclicPoissonSampling,
    FixedOrderBatches,
    FixedSizeSampling,
    GaussianNoise,
    GridNoise,
    GroupwiseClipping,
    Mechanism,
    NoiseMechanism,
    PerSampleAdaptiveClipping,
    QuantileClipping,
    SamplingScheme,
    optimal_banded,
    verify,
)

BANDED = CorrelatedNoise(1.5, optimal_banded(16, 4))
QUANTILE = QuantileClipping(0.5, count_noise_multiplier=5.0)
TRIPLES: list[tuple[ClipRule, SamplingScheme, NoiseMechanism]] = [
    (AutomaticClipping(0.5), BallsInBinsSampling(8), GridNoise(1.5)),
    (QUANTILE, BallsInBinsSampling(8), GaussianNoise(1.5)),
    (GroupwiseClipping(0.5, noise="least"), FixedSizeSampling(8, 64), GaussianNoise(1.5)),
    (PerSampleAdaptiveClipping(0.5), CyclicPoissonSampling(1 / 8, 4), BANDED),
    (GroupwiseClipping(0.5), FixedOrderBatches(8), BANDED),
    (QUANTILE, CyclicPoissonSampling(1 / 8, 4), GaussianNoise(1.5)),
]


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize(("rule", "sampling", "noise"), TRIPLES)
def test_kinds_that_go_together_pass(rule: ClipRule, sampling: SamplingScheme, noise: NoiseMechanism) -> None:
    """False alarms below 1e-6, the default of `verify`."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 4), torch.randint(0, 2, (64,)))
    planned = Mechanism(noise=noise, clipping=rule, sampling=sampling, expected_batch_size=8)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    verdict = verify(model, DataLoader(data, batch_size=8), nn.CrossEntropyLoss(), planned)
    assert verdict.passed, str(verdict)
