"""Per-sample adaptive clipping (PSAC): nearly the same norm for every gradient, and no more than C times a tiny one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hushgrad.arguments import at_least
from hushgrad.clipping.one_norm import OneNorm
from hushgrad.clipping.rule import derived, scaled_by, whole_norms

SMALLEST_R = 1e-6


@final
@dataclass(frozen=True)
class PerSampleAdaptiveClipping(OneNorm):
    """Multiply each gradient g with C / (‖g‖ + r / (‖g‖ + r)) (PSAC of Xia et al. 2023, arXiv 2212.00328).

    As automatic clipping, but that a gradient which is tiny beside r is multiplied with C and not with C / γ: examples
    that are learnt already weigh less.

    Attributes:
        max_grad_norm: C, in units of the gradient.
        r: the constant of the paper, from 1e-6 on. It changes no ε.

    Raises `InvalidArgumentError` for a value out of range.

    Guarantee: an example adds at most C to the sum, for every r.
    Guarantee: a class that is derived from it is refused, so that what goes by this name is this rule.
    """

    max_grad_norm: float = 1.0
    r: float = 0.1

    def __init_subclass__(cls, **_: Any) -> None:
        raise derived(cls, "per-sample adaptive clipping")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "r", at_least("r", self.r, SMALLEST_R, "The paper's 0.1 is a good first choice"))

    def factors(self, norms_GB: Tensor) -> Tensor:
        """Return C / (‖g‖ + r / (‖g‖ + r)) for each norm, in float64, and 0 where it is not finite."""
        wide_GB = norms_GB.double()
        factors_GB = self.max_grad_norm / (wide_GB + self.r / (wide_GB + self.r))
        return torch.where(torch.isfinite(wide_GB), factors_GB, 0.0)

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return Σ_i g_i · C (‖g_i‖ + r) / (‖g_i‖² + r ‖g_i‖ + r), the same written with one division."""
        norms_B = whole_norms(per_example)
        denominators_B = norms_B.square() + self.r * norms_B + self.r
        return scaled_by(self.max_grad_norm * (norms_B + self.r) / denominators_B, per_example)
