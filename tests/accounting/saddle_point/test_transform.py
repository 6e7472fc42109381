"""The transform at many frequencies against the sums that define it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import jv

from hushgrad.accounting.saddle_point.transform import _TERMS, _bessel_functions, _by_blocks, _on_a_lattice, transform


def _points(number: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(20240611)
    losses = np.sort(random.exponential(size=number)) - 0.3
    weights = random.random(number) * np.exp(-losses)
    return losses, weights / weights.sum()


@pytest.mark.parametrize(("number", "interval", "nodes"), [(3000, 0.07, 2000), (500, 13.0, 8191), (4000, 0.3, 300)])
def test_the_lattice_gives_the_sums_within_its_stated_error(number: int, interval: float, nodes: int) -> None:
    losses, weights = _points(number)
    found, error = _on_a_lattice(losses, weights, interval, nodes)
    exact = _by_blocks(interval * losses, weights, nodes)
    turns = interval * nodes * losses.max()  # whose phases floating point rounds, for both ways alike
    assert np.abs(found - exact).max() <= error + 2.0**-52 * turns
    assert error < 1e-14


def test_few_points_at_few_frequencies_are_summed_as_they_stand() -> None:
    losses, weights = _points(100)
    found, error = transform(losses, weights, 0.1, 50)
    assert error == 0
    assert np.allclose(found, [np.sum(weights * np.exp(1j * k * 0.1 * losses)) for k in range(50)], rtol=0, atol=1e-14)


def test_the_recurrence_of_the_bessel_functions_keeps_their_digits() -> None:
    z = np.linspace(0, np.pi / 2, 400)
    assert np.abs(_bessel_functions(z) - np.array([jv(p, z) for p in range(_TERMS)])).max() < 1e-15
