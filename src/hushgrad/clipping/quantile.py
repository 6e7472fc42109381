"""Quantile-adaptive clipping: the clip norm follows a quantile of the gradients' norms, told by a noised count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, final

import torch
from torch import Tensor

from hushgrad.arguments import open_unit_interval, positive_number
from hushgrad.clipping.adaptation import LARGEST_COUNT, Adaptation
from hushgrad.clipping.one_norm import OneNorm, clip_factors, clipped_plainly
from hushgrad.clipping.rule import derived, whole_norms
from hushgrad.errors import InvalidArgumentError

LEAST, MOST = 1e-18, 1e18
"""Between these a norm stays, whatever the noise on the counts does: float32 holds it and its square."""


@final
@dataclass(frozen=True)
class QuantileClipping(OneNorm, Adaptation):
    """Clip to C_t, which moves to the γ-quantile of the norms (Andrew et al. 2021, arXiv 1905.03871, Algorithm 1).

    Every step releases, beside the gradients, the noised count Σ_i (b_i − ½) with b_i = 1 where ‖g_i‖ ≤ C_t, else 0
    (also where ‖g_i‖ is not finite), over all physical batches of the logical one. Then b̃ = ½ + count / B, and
    C_{t+1} = C_t · exp(−η (b̃ − γ)). B is the expected batch size. Clip and noise of a step use one C_t.

    The charge stays that of the noise multiplier σ: the gradients get a little more noise, σ_g · C_t with
    σ_g = (σ⁻² − (2σ_b)⁻²)^(−½). C_t is a function of noised values, so it is public.

    Attributes:
        max_grad_norm: C_0, the norm of the first step, in units of the gradient.
        quantile: γ, the share of examples that are not to be clipped, in (0, 1).
        learning_rate: η.
        count_noise_multiplier: σ_b, the standard deviation of the noise on the count; above σ / 2. A twentieth of B
            costs the gradients 0.5% more noise at σ = 1, B = 100.

    Raises `InvalidArgumentError` for a value out of range.

    Guarantee: gradients and count together cost a step what the noise multiplier says, and an example that is not
    finite counts as one above the norm.
    Guarantee: a class that is derived from it is refused, so that what goes by this name is this rule.
    """

    max_grad_norm: float
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise_multiplier: float = 5.0

    def __init_subclass__(cls, **_: Any) -> None:
        raise derived(cls, "quantile-adaptive clipping")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "quantile", open_unit_interval("quantile", self.quantile))
        for name in ("learning_rate", "count_noise_multiplier"):
            object.__setattr__(self, name, positive_number(name, getattr(self, name)))

    @property
    def adaptation(self) -> Adaptation:
        """What is counted, and what the next norm is: the rule itself."""
        return self

    def factors(self, norms_GB: Tensor) -> Tensor:
        """Return min(1, C_t/‖g‖) for each norm, in float64, and 0 where it is not finite."""
        return clip_factors(norms_GB, self.max_grad_norm)

    def scaled(self, factor: float) -> Self:
        """Refuse: a schedule and the count would each set the norm.

        Raises:
            InvalidArgumentError: always.
        """
        raise InvalidArgumentError(
            "clip_schedule and quantile-adaptive clipping would each set the clip norm of a step",
            where="clip_schedule",
            cure="Leave clip_schedule out, or take FlatClipping",
        )

    def reference(self, per_example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return Σ_i g_i · min(1, C_t/‖g_i‖)."""
        return clipped_plainly(self.max_grad_norm, per_example)

    # The count -------------------------------------------------------------------------------------------------------

    @property
    def current_norm(self) -> float:
        """C_t, the norm of the step in work, in units of the gradient."""
        return self.max_grad_norm

    def with_norm(self, norm: float) -> Self:
        """Return the rule with C_t = `norm`."""
        return replace(self, max_grad_norm=norm)

    def signs(self, norms_GB: Tensor) -> Tensor:
        """Return b_i − ½ for each example: ½ where its norm is at most C_t, else −½."""
        return torch.where(norms_GB.double().squeeze(0) <= self.max_grad_norm, LARGEST_COUNT, -LARGEST_COUNT)

    def reference_count(self, per_example: Mapping[str, Tensor]) -> float:
        """Return Σ_i (b_i − ½)."""
        clipped = int((whole_norms(per_example) > self.max_grad_norm).sum())
        return len(next(iter(per_example.values()))) / 2 - clipped

    def next_norm(self, noised_count: float, expected_batch_size: float) -> float:
        """Return C_t · exp(−η (½ + count / B − γ)), between 1e-18 and 1e18."""
        share = LARGEST_COUNT + noised_count / expected_batch_size
        exponent = math.log(self.max_grad_norm) - self.learning_rate * (share - self.quantile)
        return math.exp(min(max(exponent, math.log(LEAST)), math.log(MOST)))
