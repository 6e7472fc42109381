"""Clip rules: from norms to factors, and the sensitivity of the clipped sum that follows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.arguments import positive_number


@dataclass(frozen=True)
class FlatClipping:
    """Clip the whole gradient of an example, all parameters together, to norm C (Abadi et al. 2016, Algorithm 1).

    Guarantee: adding or removing one example changes the clipped sum by at most `sensitivity`.
    """

    max_grad_norm: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_grad_norm", positive_number("max_grad_norm", self.max_grad_norm))

    @property
    def sensitivity(self) -> float:
        """C, the largest norm with which one example enters the sum."""
        return self.max_grad_norm

    def factors(self, norms_B: Tensor) -> Tensor:
        """Return min(1, C/‖g‖) for norms `[B]`, and 0 where the norm is not finite."""
        factors_B = torch.where(norms_B > self.max_grad_norm, self.max_grad_norm / norms_B, 1.0)
        return torch.where(torch.isfinite(norms_B), factors_B, 0.0)
