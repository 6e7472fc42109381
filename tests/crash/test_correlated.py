"""A crash between a release and its checkpoint, with noise that is correlated between steps."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import correlated_loop as loop
import numpy as np
import pytest
from killing_programs import told_by


def released(path: Path) -> np.ndarray:
    """Return what a process released, `[steps, values]`."""
    return np.frombuffer(path.read_bytes(), dtype=np.float32).reshape(-1, 8000).astype(np.float64)


def largest_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest correlation of a row of the one with a row of the other."""
    return float(np.abs(one @ other.T / np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))).max())


def whitened(rows: np.ndarray) -> np.ndarray:
    c = loop.STRATEGY.coefficients(len(rows))
    return np.stack([sum(c[j] * rows[t - j] for j in range(t + 1)) for t in range(len(rows))])


FRESH = 7 / np.sqrt(8000)
"""Fresh noise of two steps is less correlated, for all pairs here together, but with a probability of 1e-9."""


@pytest.mark.statistical
def test_after_a_crash_no_two_releases_are_more_correlated_than_fresh_noise(tmp_path: Path) -> None:
    told, _ = told_by(sys.executable, "correlated_loop.py", tmp_path, "secret")
    assert told["ends"] == [-signal.SIGKILL, 0]
    first, second = released(tmp_path / "first"), released(tmp_path / "second")
    assert len(first) == loop.DIES_AT + 1  # the last one has left, and no checkpoint knows of it
    assert len(second) == loop.STEPS - loop.EVERY
    assert largest_correlation(first, second) < FRESH
    for rows in (whitened(first), whitened(second)):
        assert largest_correlation(rows[1:], rows[:1]) < FRESH
        assert np.abs(rows.std(axis=1) / (loop.LOUD / 4) - 1).max() < 0.06
    # All that was drawn is charged: seven steps in a block, and what came after in one of its own.
    assert told["charged"] == [[0, loop.DIES_AT + 1], [1, loop.STEPS - loop.EVERY]]
    assert told["end"] == loop.STEPS


@pytest.mark.slow
def test_noise_that_is_drawn_again_would_be_found(tmp_path: Path) -> None:
    """The mistake of a key that is kept: released noise comes again, beside other sums."""
    told, _ = told_by(sys.executable, "correlated_loop.py", tmp_path, "fixed")
    assert told["ends"] == [-signal.SIGKILL, 0]
    assert largest_correlation(released(tmp_path / "first"), released(tmp_path / "second")) > 0.99
