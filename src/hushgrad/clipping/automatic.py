"""Automatic clipping (AUTO-S): every gradient is brought to nearly the same norm, so that none has to be tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hushgrad.arguments import at_least
from hushgrad.clipping.one_norm import OneNorm
from hushgrad.clipping.rule import derived, scaled_by, whole_norms

SMALLEST_GAMMA = 1e-4
"""Below it a factor would be larger than norms are told from 0, at physical batches of 100,000 rows of a mean loss."""


@final
@dataclass(frozen=True)
class AutomaticClipping(OneNorm):
    """Multiply each gradient g with C / (‖g‖ + γ) (AUTO-S of Bu et al. 2023, arXiv 2206.07136, equation 5).

    C is then nothing but a part of the learning rate (of Adam not even that), so that it needs no tuning. Gradients
    that are small beside γ keep a part of their size.

    Attributes:
        max_grad_norm: C, in units of the gradient.
        gamma: γ, in units of the gradient of one example's loss (undivided), at least 1e-4. It changes no ε.

    Raises `InvalidArgumentError` for a value out of range.

    Guarantee: an example adds at most C to the sum, for every γ.
    Guarantee: a class that is derived from it is refused, so that what goes by this name is this rule.
    """

    max_grad_norm: float = 1.0
    gamma: float = 0.01

    def __init_subclass__(cls, **_: Any) -> None:
        raise derived(cls, "automatic clipping")

    def __post_init__(self) -> None:
        super().__post_init__()
        cure = "The paper's 0.01 suits everything that it tried; or take FlatClipping"
        object.__setattr__(self, "gamma", at_least("gamma", self.gamma, SMALLEST_GAMMA, cure))

    def factors(self, norms_GB: Tensor) -> Tensor:
        """Return C / (‖g‖ + γ) for each norm, in float64, and 0 where it is not finite."""
        wide_GB = norms_GB.double()
        return torch.where(torch.isfinite(wide_GB), self.max_grad_norm / (wide_GB + self.gamma), 0.0)

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return Σ_i g_i · C / (‖g_i‖ + γ)."""
        return scaled_by(self.max_grad_norm / (whole_norms(per_example) + self.gamma), per_example)
