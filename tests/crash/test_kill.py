"""A training loop killed at random moments never released a step that its ledger lacks."""

from pathlib import Path

import pytest
from killing_programs import told_by


@pytest.mark.parametrize(
    ("kills", "lease"),
    [(40, 1), (40, 8), pytest.param(1000, 1, marks=pytest.mark.slow), pytest.param(1000, 32, marks=pytest.mark.slow)],
)
def test_no_killed_process_released_a_step_that_the_ledger_lacks(
    tmp_path: Path, forked_python: str, kills: int, lease: int
) -> None:
    """Guarantee: never a step released that the ledger lacks; each kill over-charges by at most one lease."""
    found, errors = told_by(forked_python, "kill_loop.py", tmp_path, kills, lease, 5, timeout=600)
    assert found["kills"] == kills
    assert found["failed"] == 0, errors
    assert found["uncharged"] == 0
    assert found["worst_over_charge"] <= lease
    assert found["steps"] > kills // 2  # the loops did train: most are killed after their first step
