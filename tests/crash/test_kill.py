"""A training loop killed at random moments never released a step that its ledger lacks."""

import json
import os
import subprocess
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("kills", "lease"),
    [(40, 1), (40, 8), pytest.param(1000, 1, marks=pytest.mark.slow), pytest.param(1000, 32, marks=pytest.mark.slow)],
)
def test_no_killed_process_released_a_step_that_the_ledger_lacks(
    tmp_path: Path, forked_python: str, kills: int, lease: int
) -> None:
    """Guarantee: never a step released that the ledger lacks; each kill over-charges by at most one lease."""
    script = Path(__file__).with_name("kill_loop.py")
    result = subprocess.run(
        [forked_python, str(script), str(tmp_path), str(kills), str(lease), "5"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["kills"] == kills
    assert found["failed"] == 0, result.stderr
    assert found["uncharged"] == 0
    assert found["worst_over_charge"] <= lease
    assert found["steps"] > kills // 2  # the loops did train: most are killed after their first step
