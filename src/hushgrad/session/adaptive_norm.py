"""The clip norm of an adaptive rule while a session trains: its count, and the norm that follows from it.

What is kept is a function of noised values alone, so it is public: checkpoints hold it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hushgrad.arguments import clip_norm
from hushgrad.clipping.adaptation import LARGEST_COUNT, Adaptation
from hushgrad.errors import CheckpointError
from hushgrad.mechanism import Mechanism


class AdaptiveNorm:
    """The clip norm of the step in work, and what its examples have added to the count so far.

    Of a rule whose norm is fixed there is nothing: `is_adaptive` is False and the mechanism stays as it is.

    Guarantee: clip, noise and count of a step use one norm, which follows from noised counts of earlier steps alone.
    """

    def __init__(self, mechanism: Mechanism) -> None:
        """Begin with the norm of the rule.

        Raises:
            InvalidArgumentError: the noise on the count is too little beside that of some step.
        """
        self._rule = mechanism.clipping
        if self._adaptation is not None:
            self._adaptation.share(mechanism.noise_multiplier * max(mechanism.noise_schedule or (1.0,)))
        self._made: tuple[Mechanism, Mechanism] | None = None
        self._signs: Tensor | None = None
        self._counted = 0

    @property
    def _adaptation(self) -> Adaptation | None:
        return self._rule.adaptation

    @property
    def is_adaptive(self) -> bool:
        """Whether the clip norm follows from what is released."""
        return self._adaptation is not None

    @property
    def current(self) -> float | None:
        """C_t; None for a rule whose norm is fixed."""
        return None if self._adaptation is None else self._adaptation.current_norm

    def of(self, mechanism: Mechanism) -> Mechanism:
        """Return the mechanism of a step, as it is planned, with the clip norm of now."""
        if not self.is_adaptive or mechanism.clipping is self._rule:
            return mechanism
        if self._made is None or self._made[0] is not mechanism or self._made[1].clipping is not self._rule:
            self._made = (mechanism, mechanism.with_clipping(self._rule))
        return self._made[1]

    # The count -------------------------------------------------------------------------------------------------------

    def count(self, norms_GB: Tensor) -> None:
        """Add what examples with these norms count."""
        if self._adaptation is None:
            return
        signs_B = self._adaptation.signs(norms_GB).nan_to_num(0.0).clamp(-LARGEST_COUNT, LARGEST_COUNT)
        total = signs_B.sum(dtype=torch.float64)
        self._signs = total if self._signs is None else self._signs + total.to(self._signs.device)
        self._counted += norms_GB.shape[1]

    def count_unused(self, examples: int, groups: int) -> None:
        """Add what examples count that used no parameter, so that they have norms 0."""
        if self.is_adaptive and examples:
            self.count(torch.zeros(groups, examples))

    @property
    def counted(self) -> int:
        """How many examples were counted since the last update."""
        return self._counted

    def take(self, device: torch.device) -> Tensor:
        """Return the count, `[1]` in float64, and begin the next one.

        In float32 its rounding would be a part of the ½ that one example adds, where batches are large.
        """
        total, self._signs, self._counted = self._signs, None, 0
        if total is None:
            return torch.zeros(1, dtype=torch.float64, device=device)
        return total.reshape(1).to(device)

    def drop(self) -> None:
        """Forget what was counted."""
        self._signs, self._counted = None, 0

    def move(self, noised_count: Tensor, mechanism: Mechanism) -> None:
        """Go on to the norm of the next step."""
        if self._adaptation is not None:
            norm = self._adaptation.next_norm(float(noised_count), mechanism.expected_batch_size)
            self._rule = self._adaptation.with_norm(norm)

    # Coming back -----------------------------------------------------------------------------------------------------

    def require(self, norm: float | None) -> None:
        """Refuse a checkpoint that does not say which norm its step had.

        Raises:
            CheckpointError: it was written under a rule whose norm is fixed, or this rule's is.
        """
        if (norm is None) == self.is_adaptive:
            held, now = ("no clip norm", "adaptive") if norm is None else ("the norm of an adaptive clip rule", "fixed")
            raise CheckpointError(
                f"it holds {held}, and the clip norm of this training is {now}",
                where="the checkpoint",
                cure="Go on with the clip rule that it was written under",
            )

    def restore(self, norm: float | None) -> None:
        """Take the norm of a checkpoint. Raises `CheckpointError` as `require` does."""
        self.require(norm)
        if self._adaptation is not None:
            self._rule = self._adaptation.with_norm(clip_norm("the clip norm of the checkpoint", norm))
