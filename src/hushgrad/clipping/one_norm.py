"""What clip rules have in common that bound the whole gradient of an example, all parameters together, by a norm C."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from hushgrad.arguments import clip_norm
from hushgrad.clipping.rule import ClipRule, scaled_by, whole_norms


@dataclass(frozen=True)
class OneNorm(ClipRule):
    """A rule of one group with the limit C.

    Attributes:
        max_grad_norm: C, in units of the gradient.
    """

    max_grad_norm: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_grad_norm", clip_norm("max_grad_norm", self.max_grad_norm))

    @property
    def sensitivity(self) -> float:
        """C, the largest norm with which one example enters the sum."""
        return self.max_grad_norm

    def limits(self, count: int) -> tuple[float, ...]:
        """Return C, for the one group."""
        return (self.max_grad_norm,) * count

    def scaled(self, factor: float) -> Self:
        """Return the same with C · `factor`."""
        return replace(self, max_grad_norm=self.max_grad_norm * factor)


def clip_factors(norms: Tensor, limits: Tensor | float) -> Tensor:
    """Return min(1, limit / norm) for each norm, in float64, and 0 where it is not finite; limits are broadcast."""
    wide = norms.double()
    return torch.where(torch.isfinite(wide), torch.where(wide > limits, limits / wide, 1.0), 0.0)


def clipped_plainly(limit: float, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return Σ_i g_i · min(1, limit/‖g_i‖), g_i being all that is given of an example: for references."""
    return scaled_by((limit / whole_norms(per_example)).clamp(max=1), per_example)
