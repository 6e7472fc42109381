"""What one use of a parameter contributes to its per-example gradients, kept in factored form.

A contribution never has to hold `[B, *shape]` gradients. It knows how to give squared norms per example, a weighted sum
over examples, and, when asked, the gradients themselves. All are exact; they differ in cost (docs/design.md, §5).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from hushgrad.errors import UnsupportedModelError
from hushgrad.gradients.machine import CPU, NO_LIMIT, Machine, machine_of
from hushgrad.gradients.rounding import FLOOR

if TYPE_CHECKING:
    from hushgrad.gradients.groups import Groups
    from hushgrad.gradients.placement import Put

Way = Literal["product", "gram", "instantiate"]

AUTOCAST_DEVICES = ("cpu", "cuda")

KEEP_NONE = -1
"""A budget by which no gradients are kept, also where they take no more memory than their operands."""


@dataclass(frozen=True)
class Plan:
    """How norms are computed: the choice of way, and the memory that per-example gradients may take.

    `way` forces a way wherever the form of the gradient admits it; else it is the fastest by the constants of
    `machine`. `keep_bytes` is a budget for all parameters in one physical batch, beyond the operands in whose place
    gradients are kept. `floor` is a squared norm below which examples are not clipped, so that digits that do not count
    beside it may be lost. `sum_bytes` is a budget for the clipped sums of a sharded model, as long as they are whole in
    each process. `operand_bytes` is one for the operands of a physical batch, as long as its norms are not known; above
    it norms and sums are taken inside the backward. Every plan gives the same numbers.
    """

    way: Way | None = None
    keep_bytes: int = CPU.keep_bytes
    machine: Machine = CPU
    floor: float = FLOOR
    sum_bytes: int = CPU.sum_bytes
    operand_bytes: int = CPU.operand_bytes

    @classmethod
    def of_device(cls, device: torch.device, way: Way | None = None, keep_bytes: int | None = None) -> Plan:
        """Return the plan for a device: its machine's constants and, unless given, its machine's budget."""
        machine = machine_of(device)
        kept = machine.keep_bytes if keep_bytes is None else keep_bytes
        return cls(way, kept, machine, sum_bytes=machine.sum_bytes, operand_bytes=machine.operand_bytes)

    @property
    def limits_operands(self) -> bool:
        """Whether there is a budget for operands at all."""
        return self.operand_bytes < NO_LIMIT

    def choose(self, times: Mapping[Way, float]) -> Way:
        """Return the way that is forced if it is one of those timed, else the fastest, of equal ones the first."""
        if self.way is not None and self.way in times:
            return self.way
        return min(times, key=lambda way: times[way])

    def after(self, taken_bytes: int) -> Plan:
        """Return the plan for what comes after gradients that take so much of the budget."""
        return replace(self, keep_bytes=max(0, self.keep_bytes - taken_bytes))


class Contribution(ABC):
    """Per-example gradients `[B, *shape]` of one parameter in factored form, in float32 or float64.

    Operands may be held in 16 bits (`Narrow`); norms and sums are formed in at least float32.
    """

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """B, the number of examples."""

    @property
    @abstractmethod
    def operands(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of, the examples first."""

    @abstractmethod
    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]`, in float64, and what is to be summed afterwards.

        Infinite where float32 cannot tell the norm. What is returned to be summed is what was measured.
        """

    def formed(self, plan: Plan) -> Tensor | None:
        """Return the gradients `[B, *shape]` where forming them is the way, and takes no more memory than operands do.

        They are then best formed at once, in place of the operands; else None.
        """
        return None

    @abstractmethod
    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i in the parameter's shape."""

    @abstractmethod
    def per_example(self) -> Tensor:
        """Return the gradients themselves, `[B, *shape]`."""

    @abstractmethod
    def map_examples(self, change: Callable[[Tensor], Tensor]) -> Contribution:
        """Return this contribution with `change` applied to each floating operand and, if it only indexes, to all."""

    def of_groups(self, groups: Groups) -> Contribution:
        """Return the sum, or the mean, over each group's examples as the contribution of one.

        Raises:
            PrivacyUnitError: it has another number of examples than are in groups.
            UnsupportedModelError: contributions of this kind are not recorded, but made of others.
        """
        raise UnsupportedModelError(
            "gradients of this kind cannot be joined by user",
            where=type(self).__name__,
            cure="Draw records by themselves, and ask for the epsilon of group_size",
        )

    def in_row(self, put: Put) -> Contribution:
        """Return the part of it that belongs to this process's part of a parameter that is cut in a row of processes.

        Raises:
            UnsupportedModelError: a contribution of this kind is not known to be cut.
        """
        raise UnsupportedModelError(
            "a parameter that is cut among tensor parallel processes was used by another operator than a matrix "
            "product, an embedding or a normalisation",
            where=type(self).__name__,
            cure="Leave the module with this parameter out of parallelize_module, so that every process has it whole",
        )

    @property
    def wide(self) -> Contribution:
        """This contribution with operands in at least float32."""
        return self

    @property
    def terms(self) -> int:
        """How many terms are added up, at most, in one value of a sum over all examples."""
        return self.batch_size

    def term_squares(self) -> Tensor | None:
        """Return the square of the sum of the norms of each example's terms, `[B]`, or more.

        None where no two terms of an example meet in one value: that is its squared norm.
        """
        return None

    @property
    def nbytes(self) -> int:
        """How many bytes the operands hold."""
        return sum(operand.nbytes for operand in self.operands)

    @property
    def nbytes_in_float64(self) -> int:
        """How many they would hold in float64."""
        return sum(8 * operand.numel() for operand in self.operands)

    def select(self, rows: Tensor) -> Contribution:
        """Return the contribution of the examples at the given indices, in float64.

        It serves examples whose norm overflows float32: their squares fit into float64.
        """
        return self.map_examples(lambda operand: _select(operand, rows))

    def alone(self, place: int) -> Contribution:
        """Return the contribution of one example, as it will be summed."""
        return self.map_examples(lambda operand: operand[place : place + 1])

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
    """Return the dtype in which norms and sums of values of `dtype` are formed: at least float32, or complex64."""
    if dtype.is_complex:
        return torch.complex128 if dtype == torch.complex128 else torch.complex64
    return torch.float64 if dtype == torch.float64 else torch.float32


def full_precision() -> AbstractContextManager[None]:
    """Run without autocast: norms and sums of 16-bit values are formed in at least float32."""
    devices = [device for device in AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
    return _without_autocast(devices) if devices else nullcontext()


@contextmanager
def _without_autocast(devices: Sequence[str]) -> Iterator[None]:
    with ExitStack() as stack:
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def all_digits() -> Iterator[None]:
    """Run products and convolutions of float32 with all its digits, whatever the user allowed (TF32, bf16)."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def chunks_of_examples(batch_size: int, bytes_per_example: int, budget: int) -> list[slice]:
    """Cut `range(batch_size)` into slices whose per-example gradients fit the budget (at least one example each)."""
    size = max(1, min(batch_size, budget // max(1, bytes_per_example)))
    return [slice(start, min(start + size, batch_size)) for start in range(0, batch_size, size)]
