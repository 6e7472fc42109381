"""Which known mistake explains what groups of examples add to an update."""

from __future__ import annotations

import pytest
import torch
from loops import BELIEF, SIGMA, B, Batch, C, Loop, clip, gradients, measured, noised, right
from torch import Tensor

from hushgrad.checks.verification.mistakes.groups import find_causes


def causes(loop: Loop, charged: float = SIGMA) -> list[str]:
    reading, noise = measured(loop)
    return [cause.code for cause in find_causes(reading, BELIEF, charged, noise)]


def interacting(batch: Batch) -> list[Tensor]:
    x, y = batch
    return noised(clip(gradients((x * (1 + 0.5 * x.roll(1, 0)), y))).sum(0))


MISTAKES: dict[str, Loop] = {
    "not-clipped": lambda batch: noised(gradients(batch).sum(0)),
    "clip-norm-differs": lambda batch: noised(clip(gradients(batch), 2 * C).sum(0)),
    "actual-batch-size": lambda batch: noised(clip(gradients(batch)).sum(0) / max(1, len(batch[0]))),
    "batch-clipped": lambda batch: noised(clip(gradients(batch).sum(0)[None])[0]),
    "examples-interact": interacting,
    "noise-level": lambda batch: noised(clip(gradients(batch)).sum(0), 1.2345 * SIGMA * C),
    "empty-draw-without-noise": lambda batch: right(batch) if len(batch[0]) else [torch.zeros(40)],
}


@pytest.mark.statistical
@pytest.mark.parametrize("code", MISTAKES)
def test_the_likeliest_mistake_is_the_one_that_was_made(code: str) -> None:
    """Fixed seeds."""
    assert causes(MISTAKES[code])[0] == code


@pytest.mark.statistical
def test_a_right_loop_has_no_cause_and_a_wrong_charge_of_it_has_its_own() -> None:
    """Fixed seeds; false alarm 1e-6."""
    assert causes(right) == []
    assert causes(right, charged=SIGMA * B) == ["charged-sigma-times-batch"]
