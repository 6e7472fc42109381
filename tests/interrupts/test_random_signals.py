"""Alarms at random moments of steps: each is heard, no update lacks its noise, and none is above what was charged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SIGNALS = 300


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False], ids=["fastest", "arrays"])
@pytest.mark.parametrize(
    ("threads", "runtime", "environment"),
    [
        (1, "openmp", {}),
        (2, "openmp", {}),
        (2, "openmp", {"OMP_THREAD_LIMIT": "1"}),
        (2, "python", {}),
    ],
    ids=["one", "two", "limited", "python"],
)
def test_alarms_at_random_moments_are_heard_and_leave_no_update_without_noise(
    threads: int, runtime: str, environment: dict[str, str], compiled: bool
) -> None:
    """2,400 alarms in all."""
    script = Path(__file__).with_name("random_signals.py")
    result = subprocess.run(
        [sys.executable, str(script), str(SIGNALS), str(threads), runtime, "11"],
        env={**os.environ, **environment} | ({} if compiled else {"NUMBA_DISABLE_JIT": "1"}),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["raised"] == SIGNALS
    assert found["heard"] == found["raised"]
    assert found["dropped"] == []
    assert found["bare"] == 0
    assert 0 < found["updates"] <= found["charged"] <= found["steps"]
    assert found["verdict"] == "as charged"
    assert compiled or found["backend"] == "ArrayBackend"
