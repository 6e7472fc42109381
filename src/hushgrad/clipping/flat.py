"""Flat clipping: one norm over all parameters, one limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor

from hushgrad.arguments import clip_norm
from hushgrad.clipping.rule import ClipRule, derived, scaled_by, whole_norms


@final
@dataclass(frozen=True)
class FlatClipping(ClipRule):
    """Clip the whole gradient of an example, all parameters together, to norm C (Abadi et al. 2016, Algorithm 1).

    Guarantee: adding or removing one example changes the clipped sum by at most `sensitivity`.
    Guarantee: a class that is derived from it is refused, so that what goes by this name is this rule.
    """

    max_grad_norm: float

    def __init_subclass__(cls, **_: Any) -> None:
        raise derived(cls, "flat clipping")

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_grad_norm", clip_norm("max_grad_norm", self.max_grad_norm))

    @property
    def sensitivity(self) -> float:
        """C, the largest norm with which one example enters the sum."""
        return self.max_grad_norm

    def limits(self, count: int) -> tuple[float, ...]:
        """Return C, for the one group."""
        return (self.max_grad_norm,) * count

    def factors(self, norms_GB: Tensor) -> Tensor:
        """Return min(1, C/‖g‖) for each norm, in float64, and 0 where it is not finite."""
        wide_GB = norms_GB.double()
        factors_GB = torch.where(wide_GB > self.max_grad_norm, self.max_grad_norm / wide_GB, 1.0)
        return torch.where(torch.isfinite(wide_GB), factors_GB, 0.0)

    def scaled(self, factor: float) -> Self:
        """Return flat clipping to C · `factor`."""
        return type(self)(self.max_grad_norm * factor)

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return Σ_i g_i · min(1, C/‖g_i‖)."""
        return scaled_by((self.max_grad_norm / whole_norms(per_example)).clamp(max=1), per_example)
