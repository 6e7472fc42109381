"""The clean zoo over DistributedDataParallel: each model's update is that of one process, and replicas stay equal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

from clean_models import CLEAN

Processes = Callable[..., list[Any]]

DRAWING = "variational autoencoder"
"""It samples in its forward, in each process other numbers: no update is that of another run."""
MODELS = [name for name in CLEAN if name != DRAWING]
LARGE = ("ResNet-18 with group norm", "U-Net with time", "spectral and orthogonal", "LSTM language model, tied")
"""Those that take longest; the slow ring has them."""


def require_the_step_of_one(in_processes: Processes, names: list[str], steps: int) -> None:
    """One launch for all models: what each process costs most is its start."""
    for count in (1, 2):
        ended = in_processes(count, "zoo", names=names, steps=steps)
        assert [process.status for process in ended] == [0] * count, [process.errors[-2000:] for process in ended]
    first, second = (process.told for process in ended)
    assert list(first) == names
    assert {name: found["error"] for name, found in first.items() if not found["error"] <= 5e-7} == {}
    assert first == second
    assert all(bool(found["weights"]) == (steps > 0) for found in first.values())


def test_the_zoo_over_ddp_takes_the_step_of_one_process(in_processes: Processes) -> None:
    """Guarantee: one update of two processes is within 5e-7 of that of one, relative to its norm."""
    require_the_step_of_one(in_processes, [name for name in MODELS if name not in LARGE], 0)


def test_replicas_of_different_kinds_are_bit_identical_after_twenty_steps_of_adam(in_processes: Processes) -> None:
    kinds = [
        "LeNet",
        "GRU language model, tied",
        "FT-Transformer",
        "matrix factorisation",
        "frozen backbone with batch norm",
    ]
    require_the_step_of_one(in_processes, kinds, 20)


@pytest.mark.slow
def test_all_of_the_zoo_over_ddp_is_exact_and_stays_bit_identical(in_processes: Processes) -> None:
    for start in range(0, len(MODELS), 6):
        require_the_step_of_one(in_processes, MODELS[start : start + 6], 20)
