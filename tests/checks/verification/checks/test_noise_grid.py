"""Updates that come from whole numbers are told from those that do not, as far as their dtype shows."""

from __future__ import annotations

import numpy as np
import pytest

from hushgrad.checks.verification.checks.noise_grid import on_grid, told

G, B = 2.0**-31, 12.0


def whole(count, dtype, spread, seed=0):
    numbers = np.rint(np.random.default_rng(seed).normal(size=count) * spread)
    return (numbers * G / B).astype(dtype)


@pytest.mark.parametrize(("dtype", "spread"), [(np.float32, 2.0**20), (np.float64, 2.0**31)])
def test_updates_of_whole_numbers_pass_and_others_fail(dtype, spread):
    on = whole(4000, dtype, spread)
    off = on + dtype(0.3 * G / B)
    assert told(on, G, B) == (4000, 0)
    assert told(off, G, B)[1] > 2000
    for values, passes in ((on, True), (off, False)):
        check = on_grid("noise-grid", "a claim", [{"w": values}], G, B, 64)
        assert (check.code, check.passed, check.sample_size) == ("noise-grid", passes, 4000)


def test_a_division_that_comes_too_early_shows_in_float64():
    numbers = np.rint(np.random.default_rng(1).normal(size=4000) * 2.0**31)
    sums = np.rint(np.random.default_rng(2).normal(size=4000) * 2.0**31)
    early = sums * G / B + numbers * G / B
    tested, off = told(early, G, B)
    assert tested == 4000
    assert off > 500


def test_large_float32_values_tell_nothing():
    tested, off = told(whole(10_000, np.float32, 2.0**31), G, B)
    assert 0 <= tested < 50
    assert off == 0


def test_values_that_are_not_finite_tell_nothing_and_16_bits_are_left_out():
    assert told(np.array([np.nan, np.inf]), G, B)[1] in (0, 1, 2)
    check = on_grid("noise-grid", "a claim", [{"w": whole(10, np.float32, 5.0)}], G, B, 16)
    assert (check.passed, check.sample_size) == (True, 0)


def test_without_a_value_that_tells_the_check_fails():
    check = on_grid("noise-grid", "a claim", [{"w": np.full(10, 3.0, np.float32)}], G, B, 32)
    assert not check.passed
