"""The clipped sums of one logical batch, and the noised update that is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.contribution import Contribution, Plan, accumulation_dtype
from hushgrad.mechanism import DPSGD
from hushgrad.noise.gaussian import noisy_update
from hushgrad.randomness import Address, KeyStream


class Update:
    """Sums that nobody else can read, until they are written to `p.grad` with noise.

    Guarantee: every trainable parameter gets noise in every update, used or not.
    Guarantee: no noise is drawn twice, and an update is written whole or not at all.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], mechanism: DPSGD, noise: KeyStream, plan: Plan | None
    ) -> None:
        self._parameters = parameters
        self._mechanism = mechanism
        self._noise = noise
        self._plan = plan
        self._sums: dict[str, Tensor] = {}
        self._number = 0
        self._is_written = False

    @torch.no_grad()  # what was recorded may still hang on the graph of the forward
    def add(self, uses: Mapping[str, Sequence[Contribution]], scale: float) -> None:
        """Add the clipped sum of one physical batch; `scale` undoes the division of its mean loss."""
        factors = self._mechanism.clipping.factors
        for name, part in clipped_sums(uses, factors=factors, scale=scale, plan=self._plan).items():
            if name in self._sums:
                self._sums[name] += part
            else:
                self._sums[name] = part

    def drop(self) -> None:
        """Forget the sums."""
        self._sums = {}

    @torch.no_grad()
    def write(self) -> None:
        """Hand (sum + noise) / divisor to the optimizer, in `p.grad`, and forget the sums. Charge before."""
        sums, self._sums = self._sums, {}
        number, self._number = self._number, self._number + 1
        self._is_written = True
        try:
            for index, (name, parameter) in enumerate(self._parameters.items()):
                total = sums.get(name)
                if total is None:
                    total = torch.zeros_like(parameter, dtype=accumulation_dtype(parameter.dtype))
                update = noisy_update(
                    total,
                    noise_std=self._mechanism.noise_std,
                    divisor=self._mechanism.divisor,
                    stream=self._noise,
                    address=Address(step=number, item=index),
                )
                parameter.grad = _laid_out_as(parameter, update)
        except BaseException:
            self.clear()  # no partial update; the charge stands
            raise

    def clear(self) -> None:
        """Take a written update away again, used or not."""
        if self._is_written:
            for parameter in self._parameters.values():
                parameter.grad = None
            self._is_written = False


def _laid_out_as(parameter: Tensor, update: Tensor) -> Tensor:
    """Return the (contiguous) update in the parameter's dtype and memory layout; fused optimizers pair raw memory."""
    if parameter.is_contiguous():
        return update.to(parameter.dtype)
    return torch.empty_like(parameter).copy_(update)
