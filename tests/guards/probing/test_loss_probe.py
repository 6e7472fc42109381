"""Does one example's loss depend on another's output or target? Asked of the losses, and of the criterion."""

from __future__ import annotations

import pytest
import torch

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.loss_probe import require_separate_losses


def test_losses_that_mix_are_refused_beside_one_that_is_not_finite() -> None:
    """By their graph: a NaN of a record's own backward is told from one that comes over from another record."""
    out = torch.randn(6, 3, requires_grad=True)
    scale = torch.ones(6)
    scale[2] = float("nan")
    assert require_separate_losses(out.square().mean(1) * scale, [out])
    for mixed in (out.square().mean(1) * scale + out[5].sum(), (out - out[:2].mean(0)).square().mean(1) * scale):
        with pytest.raises(CrossSampleLeakError):
            require_separate_losses(mixed, [out])


def test_a_gradient_that_is_not_finite_at_a_finite_loss_is_no_leak() -> None:
    """The root of an error of 0, say: it is looked at in the next batch."""
    out = torch.randn(6, 3)
    out[2] = 0
    out.requires_grad_()
    assert not require_separate_losses(out.square().sum(1).sqrt(), [out])
    with pytest.raises(CrossSampleLeakError):
        require_separate_losses(out.square().sum(1).sqrt() + out[5].sum(), [out])
