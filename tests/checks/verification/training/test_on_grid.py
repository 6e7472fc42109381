"""Noise on a grid is verified by what training releases: planted faults of three kinds are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from replicas import replica
from torch import Tensor, nn

import hushgrad
from hushgrad.checks.verification.training.on_grid import grid_checks
from hushgrad.mechanism import grid as mechanism
from hushgrad.noise.gaussian import Noised, noisy_updates
from hushgrad.noise.grid import grid_updates


def noise_off_the_grid(parts: Any, *, noise_std: float, spacing: float, divisor: float, stream: Any) -> list[Tensor]:
    rounded = [Noised(torch.round(part.total / spacing) * spacing, part.address) for part in parts]
    return noisy_updates(rounded, noise_std=noise_std, divisor=divisor, stream=stream)


def _noise_alone(parts: Any, noise_std: float, spacing: float, stream: Any) -> list[Tensor]:
    zeros = [Noised(torch.zeros_like(part.total), part.address) for part in parts]
    return grid_updates(zeros, noise_std=noise_std, spacing=spacing, divisor=1.0, stream=stream)


def sum_off_the_grid(parts: Any, *, noise_std: float, spacing: float, divisor: float, stream: Any) -> list[Tensor]:
    noise = _noise_alone(parts, noise_std, spacing, stream)
    return [(part.total + own) / divisor for part, own in zip(parts, noise, strict=True)]


def division_first(parts: Any, *, noise_std: float, spacing: float, divisor: float, stream: Any) -> list[Tensor]:
    noise = _noise_alone(parts, noise_std, spacing, stream)
    sums = [torch.round(part.total / spacing) * spacing for part in parts]
    return [total / divisor + own / divisor for total, own in zip(sums, noise, strict=True)]


FAULTS = {
    noise_off_the_grid: {"noise-grid", "noise-grid-sum"},
    sum_off_the_grid: {"noise-grid-sum"},
    division_first: {"noise-grid-sum"},
}


class Doubled(nn.Linear):
    """A linear layer in float64, for inputs in float32."""

    def __init__(self) -> None:
        super().__init__(5, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


def failed(model: nn.Module) -> tuple[set[str], int]:
    run = replica(model, noise_kind="grid")
    checks = grid_checks(run, run.item(range(8)))
    assert {check.code for check in checks} == {"noise-grid", "noise-grid-sum"}
    return {check.code for check in checks if not check.passed}, min(check.sample_size for check in checks)


def test_training_with_noise_on_a_grid_passes_and_each_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed(Doubled()) == (set(), 36)
    for fault, codes in FAULTS.items():
        monkeypatch.setattr(mechanism, "grid_updates", fault)
        assert failed(Doubled())[0] == codes, fault.__name__


def test_in_float32_faults_off_the_grid_are_found_by_small_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20,000 values in a step some tell their whole number. Without a fault all of them come from one."""
    wide = lambda: nn.Sequential(nn.Linear(5, 4000), nn.Linear(4000, 3))  # noqa: E731
    assert failed(wide())[0] == set()
    monkeypatch.setattr(mechanism, "grid_updates", sum_off_the_grid)
    assert failed(wide())[0] == {"noise-grid-sum"}


def test_noise_without_a_grid_is_not_looked_at() -> None:
    run = replica()
    assert grid_checks(run, run.item(range(8))) == ()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_verify_passes_training_on_a_grid_and_names_what_is_off_it(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = replica(Doubled(), noise_kind="grid")
    if fault is not None:
        monkeypatch.setattr(mechanism, "grid_updates", fault)
    loader = torch.utils.data.DataLoader(run.reading.dataset, batch_size=12)
    verdict = hushgrad.verify(run.model, loader, nn.CrossEntropyLoss(), run.mechanism)
    assert verdict.passed == (fault is None)
    codes = {cause.code for cause in verdict.causes}
    assert codes == (set() if fault is None else {"noise-off-the-grid"})
