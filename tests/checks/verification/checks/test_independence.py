"""Noise that steps, parameters or coordinates share is found; independent noise is not suspected."""

from __future__ import annotations

import numpy as np
import pytest

from hushgrad.checks.verification.checks.independence import across_coordinates, across_parameters, across_steps

ALPHA = 1e-6


def noise(seed: int, shape: tuple[int, ...] = (4, 2000)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.statistical
def test_independent_noise_passes() -> None:
    """False-alarm probability 3e-6, with fixed draws."""
    one, other = noise(1), noise(2)
    scaled = [{"a": a, "b": b} for a, b in zip(one, other, strict=True)]
    assert across_steps(list(one), ALPHA).passed
    assert across_parameters(scaled, ["a", "b"], ALPHA).passed
    assert across_coordinates(scaled, ["a", "b"], ALPHA).passed


def test_steps_that_share_noise_fail() -> None:
    shared = noise(1)
    shared[3] = shared[0]
    assert not across_steps(list(shared), ALPHA).passed


def test_parameters_that_share_noise_fail() -> None:
    scaled = [{"a": row, "b": -row[:500]} for row in noise(1)]
    assert not across_parameters(scaled, ["a", "b"], ALPHA).passed


@pytest.mark.parametrize("lag", [1, 1000])
def test_coordinates_that_share_noise_fail(lag: int) -> None:
    scaled = [{"a": (row + np.roll(row, lag)) / 2**0.5} for row in noise(1)]
    assert not across_coordinates(scaled, ["a"], ALPHA).passed


def test_nothing_to_compare_is_a_check_of_no_values() -> None:
    assert across_parameters([{"a": np.ones(1)}], ["a"], ALPHA).sample_size == 0
