"""What one use of a parameter contributes to its per-example gradients, kept in factored form.

A contribution never has to hold `[B, *shape]` gradients. It knows how to give squared norms per example, a weighted sum
over examples, and, when asked, the gradients themselves. All are exact; they differ in cost (docs/design.md, §5).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Way = Literal["product", "gram", "instantiate"]


@dataclass(frozen=True)
class Plan:
    """How norms are computed: the choice of way, and how many bytes of per-example gradients one use may keep.

    `way` forces a way wherever the form of the gradient admits it; every way gives the same numbers.
    """

    way: Way | None = None
    keep_bytes: int = 1 << 28


class Contribution(ABC):
    """Per-example gradients `[B, *shape]` of one parameter in factored form, in float32 or float64."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """B, the number of examples."""

    @abstractmethod
    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]` and a contribution that is the cheapest to sum afterwards."""

    @abstractmethod
    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i in the parameter's shape."""

    @abstractmethod
    def per_example(self) -> Tensor:
        """Return the gradients themselves, `[B, *shape]`."""

    @abstractmethod
    def map_examples(self, change: Callable[[Tensor], Tensor]) -> Contribution:
        """Return this contribution with `change` applied to each floating operand and, if it only indexes, to all."""

    def select(self, rows: Tensor) -> Contribution:
        """Return the contribution of the examples at the given indices, in float64.

        It serves examples whose norm overflows float32: their squares fit into float64.
        """
        return self.map_examples(lambda operand: _select(operand, rows))

    def zeroed(self, drop_B: Tensor) -> Contribution:
        """Return the contribution with the marked examples replaced by zeros in every operand (0 × Inf is NaN)."""
        return self.map_examples(lambda operand: _zero(operand, drop_B))


def _select(operand: Tensor, rows: Tensor) -> Tensor:
    chosen = operand.index_select(0, rows)
    return chosen.double() if chosen.is_floating_point() else chosen


def _zero(operand: Tensor, drop_B: Tensor) -> Tensor:
    if not operand.is_floating_point():
        return operand
    return operand.masked_fill(drop_B.reshape(-1, *[1] * (operand.ndim - 1)), 0)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which norms and sums of values of `dtype` are formed: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextmanager
def full_precision() -> Iterator[None]:
    """Run without autocast: norms and sums of 16-bit values are formed in at least float32."""
    devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    if not devices:
        yield
        return
    with ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def chunks_of_examples(batch_size: int, bytes_per_example: int, budget: int) -> list[slice]:
    """Cut `range(batch_size)` into slices whose per-example gradients fit the budget (at least one example each)."""
    size = max(1, min(batch_size, budget // max(1, bytes_per_example)))
    return [slice(start, min(start + size, batch_size)) for start in range(0, batch_size, size)]
