"""The pieces of `python -m benchmarks.correlated_noise`: features fitted on nothing, and a session for each run."""

from __future__ import annotations

import pytest
import torch
from benchmarks.correlated_noise import BATCH, trained
from benchmarks.scattering import pooled_features, scattered
from torch.utils.data import TensorDataset

from hushgrad import compare_noise


def test_an_images_features_are_its_own_whatever_is_beside_it() -> None:
    images = torch.rand(5, 28, 28)
    together = pooled_features(images)
    assert together.shape == (5, 1296)
    for place in range(5):
        assert torch.allclose(pooled_features(images[place : place + 1])[0], together[place], atol=1e-5)


def test_a_constant_image_has_no_answer_of_any_wavelet() -> None:
    found = scattered(torch.full((1, 28, 28), 0.5))[0]
    assert found.shape == (81, 7, 7)
    assert torch.allclose(found[0], torch.full((7, 7), 0.5), atol=1e-4)
    assert found[1:].abs().max() < 1e-4


@pytest.mark.slow
def test_both_methods_learn_what_is_easy() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (2000,))
    records = torch.randn(2000, 4) + 4 * (labels - 0.5)[:, None]
    steps = 2000 // BATCH
    found = compare_noise(epsilon=8, delta=1e-5, steps=steps, rate=BATCH / 2000, max_bands=4)
    for option in (found.independent, found.named("banded")):
        assert trained(option, TensorDataset(records, labels), (records, labels), steps, 2.0, key=1) > 90
