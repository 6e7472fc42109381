"""Who may take part on a workload: who can step, and whose step does the same.

A contestant that trains fewer parameters, or clips otherwise, would be faster by doing less. Tests hold that the ones
which are installed make the same update; a peer from a folder has no test here, so every run asks again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.contestants import CONTESTANTS, HUSHGRAD, NOT_PRIVATE, ORDINARY
from benchmarks.workloads import Workload

MUST_TAKE_PART = (ORDINARY, HUSHGRAD, "hushgrad-engine")
"""They have no way out: their errors end the benchmark."""

# Peers divide by norm + 1e-6, and an update is a difference of parameters in float32.
TOLERANCE = 1e-3


def update(workload: Workload, contestant: str) -> Tensor:
    """Return how one step without noise moves all trained parameters together, `[parameters]`."""
    runner = CONTESTANTS[contestant].build(workload, 0.0)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in runner.parameters])
    runner.step(runner.prepare())
    return torch.cat([parameter.detach().flatten() for parameter in runner.parameters]) - before


def failure(workload: Workload, contestant: str, expected: Tensor) -> str | None:
    """Return why a peer takes no part on a workload, found by three steps, or None.

    Args:
        workload: what is trained.
        contestant: its name. Those that must take part are not asked.
        expected: the `update` of hushgrad's session.
    """
    if contestant in MUST_TAKE_PART:
        return None
    try:
        runner = CONTESTANTS[contestant].build(workload, 1.0)
        for _ in range(2):
            runner.step(runner.prepare())
        del runner
        return other_update(workload, contestant, expected)
    except Exception as error:  # whatever a peer raises is its answer
        return reason_of(error)


def other_update(workload: Workload, contestant: str, expected: Tensor) -> str | None:
    """Return that a private contestant's step without noise is not `expected`, the one of hushgrad, or None."""
    if contestant in NOT_PRIVATE:
        return None
    distance = float((update(workload, contestant) - expected).norm() / expected.norm())
    if distance <= TOLERANCE:
        return None
    return f"its step without noise is another one: it differs from hushgrad's by {distance:.1%} of its norm"


def reason_of(error: Exception) -> str:
    """Return an error of a peer in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'without a message'}"
