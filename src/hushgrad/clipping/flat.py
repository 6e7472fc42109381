"""Flat clipping: one norm over all parameters, one limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from hushgrad.clipping.one_norm import OneNorm, clip_factors, clipped_plainly
from hushgrad.clipping.rule import derived


@final
@dataclass(frozen=True)
class FlatClipping(OneNorm):
    """Clip the whole gradient of an example, all parameters together, to norm C (Abadi et al. 2016, Algorithm 1).

    Guarantee: adding or removing one example changes the clipped sum by at most `sensitivity`.
    Guarantee: a class that is derived from it is refused, so that what goes by this name is this rule.
    """

    def __init_subclass__(cls, **_: Any) -> None:
        raise derived(cls, "flat clipping")

    def factors(self, norms_GB: Tensor) -> Tensor:
        """Return min(1, C/‖g‖) for each norm, in float64, and 0 where it is not finite."""
        return clip_factors(norms_GB, self.max_grad_norm)

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return Σ_i g_i · min(1, C/‖g_i‖)."""
        return clipped_plainly(self.max_grad_norm, per_example)
