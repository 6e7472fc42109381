"""Readings of noise: right noise passes all checks, and each kind of wrong noise fails the one that is for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hushgrad.checks.verification.checks.noise import NoiseReading, read_noise
from hushgrad.checks.verification.verdict import failed_codes

Draws = list[dict[str, np.ndarray]]


def draws(change: Callable[[int, str, np.ndarray], np.ndarray] = lambda step, name, values: values) -> Draws:
    source = np.random.default_rng(7)
    sizes = {"weight": 3000, "bias": 1500}
    return [
        {name: change(step, name, source.standard_normal(size).astype(np.float32)) for name, size in sizes.items()}
        for step in range(8)
    ]


def read(found: Draws) -> NoiseReading:
    return read_noise(found, 1.0, 1e-6)


@pytest.mark.statistical
def test_right_noise_passes_every_check() -> None:
    """False-alarm probability 1e-6, with fixed draws."""
    reading = read(draws())
    assert not failed_codes(reading.checks.values())
    assert set(reading.checks) == {check.code for check in reading.checks.values()}
    assert reading.ratio == pytest.approx(1, abs=0.02)
    assert reading.repeats_inside == 0


WRONG: dict[str, Callable[[int, str, np.ndarray], np.ndarray]] = {
    "noise-std": lambda step, name, values: 1.1 * values,
    "noise-blocks": lambda step, name, values: 1.2 * values if name == "bias" else values,
    "noise-steps": lambda step, name, values: 2.0 * values if step == 3 else values,
    "noise-mean": lambda step, name, values: values + 0.2,
    "noise-shape": lambda step, name, values: np.clip(values, -1.5, 1.5),
    "noise-across-steps": lambda step, name, values: values + np.float32(np.sin(np.arange(len(values)))),
    "noise-repeats": lambda step, name, values: np.tile(values[: len(values) // 3], 3),
    "noise-low-bits": lambda step, name, values: values.astype(np.float16).astype(np.float32),
}


@pytest.mark.parametrize("code", WRONG)
def test_wrong_noise_fails_the_check_that_is_for_it(code: str) -> None:
    assert code in failed_codes(read(draws(WRONG[code])).checks.values())
