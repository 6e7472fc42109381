"""What a clip rule adds whose norm follows from what was released: a count beside the gradients, and the next norm.

The count is one more value of the sum that is noised. Let an example add at most L to the gradients and at most ½ to
the count, and let the noises have the standard deviations σ_g · L and σ_b. Both together are one Gaussian mechanism of
the noise multiplier σ with 1/σ² = 1/σ_g² + 1/(2σ_b)², so a step is charged as PoissonSampled(q, σ) where

    σ_g = (σ⁻² − (2σ_b)⁻²)^(−½)

(Andrew et al. 2021, arXiv 1905.03871, Theorem 1). The next norm is a function of the noised count alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from hushgrad.errors import InvalidArgumentError

if TYPE_CHECKING:
    from hushgrad.clipping.rule import ClipRule

LARGEST_COUNT = 0.5
"""The most that an example adds to the count, by its size."""


class Adaptation(ABC):
    """The count of an adaptive rule. Only rules of hushgrad's have one: it is a part of the charge.

    Attributes:
        count_noise_multiplier: σ_b, the standard deviation of the noise on the count.
        current_norm: C_t, what clips the step in work; public.
    """

    count_noise_multiplier: float

    @property
    @abstractmethod
    def current_norm(self) -> float:
        """C_t, in units of the gradient."""

    @abstractmethod
    def with_norm(self, norm: float) -> ClipRule:
        """Return the rule with another current norm."""

    @abstractmethod
    def signs(self, norms_GB: Tensor) -> Tensor:
        """Return what each example adds to the count, `[B]`, at most ½ in size, from its norms alone.

        Norms may be infinite or NaN, of examples that are left out of the sum of gradients: they count all the same.
        """

    @abstractmethod
    def reference_count(self, per_example: Mapping[str, Tensor]) -> float:
        """Return the count of some examples from their gradients, plainly, as `ClipRule.reference` does the sum."""

    @abstractmethod
    def next_norm(self, noised_count: float, expected_batch_size: float) -> float:
        """Return C_{t+1}, from the noised count of a logical batch of which B examples are expected."""

    def share(self, noise_multiplier: float) -> float:
        """Return σ / (2 σ_b): the part of the sensitivity that the count takes, below 1.

        Raises:
            InvalidArgumentError: with so little noise on the count alone a step costs more than σ.
        """
        share = noise_multiplier * LARGEST_COUNT / self.count_noise_multiplier
        if not share < 1:
            raise InvalidArgumentError(
                f"the count of the clip rule has noise of standard deviation {self.count_noise_multiplier:g}, which "
                f"alone costs more than the noise multiplier {noise_multiplier:g} that is charged: it must be above "
                f"{noise_multiplier * LARGEST_COUNT:g}",
                where="count_noise_multiplier",
                cure="Raise it: a twentieth of the expected batch size, or several times the noise multiplier",
            )
        return share


def gradient_noise_multiplier(noise_multiplier: float, count_noise_multiplier: float) -> float:
    """Return σ_g, the noise multiplier of the gradients where σ is charged and the count has noise of σ_b.

    It is (σ⁻² − (2σ_b)⁻²)^(−½), for σ < 2σ_b.
    """
    return noise_multiplier / math.sqrt(1 - (noise_multiplier * LARGEST_COUNT / count_noise_multiplier) ** 2)
