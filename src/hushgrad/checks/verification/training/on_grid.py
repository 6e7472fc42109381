"""Updates of training with noise on a grid: of noise alone, and of a batch."""

from __future__ import annotations

from typing import Any

import torch

from hushgrad.checks.verification.checks.independence import Draw
from hushgrad.checks.verification.checks.noise_grid import ENOUGH, on_grid, told
from hushgrad.checks.verification.training.copies import TrainingReplica
from hushgrad.checks.verification.update.paired_update import arrays, narrowest
from hushgrad.checks.verification.verdict import Check

_MOST_STEPS = 200


def grid_checks(replica: TrainingReplica, batch: Any) -> tuple[Check, ...]:
    """Look at updates until enough values tell their whole number; nothing for noise without a grid."""
    mechanism = replica.mechanism
    coordinates = sum(parameter.numel() for parameter in replica.model.parameters() if parameter.requires_grad)
    rounding = mechanism.noise.rounding(mechanism.sensitivity, coordinates)
    if rounding is None:
        return ()
    checks = []
    for code, claim, stimulus in (
        ("noise-grid", "noise alone is a whole number of g", None),
        ("noise-grid-sum", "a sum with its noise is a function of one whole number", batch),
    ):
        running = replica.session(seed=None)
        updates: list[Draw] = []
        bits, tested = 64, 0
        try:
            while tested < ENOUGH and len(updates) < _MOST_STEPS:
                with torch.random.fork_rng(range(torch.cuda.device_count())):
                    found = running.update(stimulus)
                bits = narrowest(found)
                updates.append(arrays(found))
                tested += sum(told(value, rounding.grid, mechanism.divisor)[0] for value in updates[-1].values())
        finally:
            running.session.close()
        checks.append(on_grid(code, claim, updates, rounding.grid, mechanism.divisor, bits))
    return tuple(checks)
