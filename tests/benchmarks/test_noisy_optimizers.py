"""The pieces of `python -m benchmarks.noisy_optimizers`."""

from __future__ import annotations

import pytest
import torch
from benchmarks.noisy_optimizers import SETTINGS, accuracy, trained
from torch import nn

DATA = (torch.randn(40, 3), torch.randint(0, 2, (40,)))


def run(kind: str, noise_multiplier: float = 0.0, **settings: float) -> nn.Module:
    torch.manual_seed(0)
    return trained(
        nn.Linear(3, 2),
        DATA,
        kind=kind,
        settings={"rate": 0.01, "floor": 0.0, **settings},
        batch_size=40,
        steps=5,
        clip_norm=1e6,
        noise_multiplier=noise_multiplier,
        seed=1,
    )


@pytest.mark.parametrize("kind", SETTINGS)
def test_without_noise_and_clipping_all_of_them_are_adam(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-12)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(DATA[0]), DATA[1]).backward()
        optimizer.step()
    for found, expected in zip(run(kind).parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_noise_is_drawn_and_accuracy_is_a_share() -> None:
    noisy, quiet = run("adam", 1e-3), run("adam")
    assert not torch.equal(noisy.weight, quiet.weight)  # type: ignore[arg-type]
    assert 0 <= accuracy(quiet, DATA) <= 1
