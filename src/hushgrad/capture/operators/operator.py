"""The shape of a rule, and the one autograd function that runs all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hushgrad.capture.layout import BatchAxes
from hushgrad.capture.leaves import Leaf
from hushgrad.capture.uses import UsePool
from hushgrad.errors import PrivacyUnitError

Recorded = Sequence[tuple[Leaf, "Any"]]


class Anchor:
    """A scalar that keeps the graph of captured operators alive without making the data require gradients.

    The first layer then has no input gradient to pay for. Whether the engine will reach the anchor tells whether a
    backward accumulates gradients into leaves (`loss.backward()`) or only asks for some inputs (`autograd.grad`).
    """

    def __init__(self) -> None:
        self.tensor = torch.zeros((), requires_grad=True)
        self._node = torch.autograd.graph.get_gradient_edge(self.tensor).node

    def is_accumulating(self) -> bool:
        """Return whether the backward that is running accumulates gradients."""
        return bool(torch._C._will_engine_execute_node(self._node))  # type: ignore[attr-defined]


@dataclass
class Forward:
    """What the operators of one forward share: its leaves, its batch axes, where uses go."""

    pool: UsePool
    anchor: Anchor
    axes: BatchAxes
    leaves: dict[int, Leaf]
    batch_size: int | None
    held: list[Tensor]

    def leaf(self, value: Any) -> Leaf | None:
        """Return the leaf that a tensor stands for, or None for any other value."""
        return self.leaves.get(id(value)) if isinstance(value, Tensor) else None

    def check_batch(self, where: str) -> None:
        """Refuse a backward through a forward that saw another number of records than the batch has."""
        if self.pool.batch_size is not None and self.batch_size != self.pool.batch_size:
            raise PrivacyUnitError(
                f"{where}: saw {self.batch_size} rows for {self.pool.batch_size} records. Give the model one row per "
                f"record of the batch, and the batch on the first axis of its inputs"
            )


class Operator(ABC):
    """One captured call: static facts as fields, tensors as arguments."""

    name: str

    @abstractmethod
    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the ordinary result and the tensors that backward needs."""

    @abstractmethod
    def input_gradients(
        self, saved: tuple[Tensor | None, ...], gradient: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Return the gradients of `inputs`, None where not needed."""

    @abstractmethod
    def record(self, pool: UsePool, saved: tuple[Tensor | None, ...], gradient: Tensor) -> Recorded:
        """Return the contributions of this call to the per-example gradients of its leaves."""


class _Captured(torch.autograd.Function):
    """Runs an operator's ordinary forward; in backward records the use and forms no parameter gradient."""

    @staticmethod
    def forward(ctx: Any, operator: Operator, call: Forward, anchor: Tensor, *inputs: Tensor | None) -> Tensor:
        output, saved = operator.forward(*inputs)
        ctx.operator, ctx.call = operator, call
        ctx.save_for_backward(*saved)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        operator, call = ctx.operator, ctx.call
        saved = ctx.saved_tensors
        if call.anchor.is_accumulating():
            call.check_batch(operator.name)
            for leaf, contribution in operator.record(call.pool, saved, gradient):
                for name, part in leaf.to_parameters(contribution):
                    call.pool.add(name, part)
        return (None, None, None, *operator.input_gradients(saved, gradient, ctx.needs_input_grad[3:]))


def capture(operator: Operator, call: Forward, *inputs: Tensor | None) -> Tensor:
    """Run an operator so that its backward records the use of its leaves."""
    return _Captured.apply(operator, call, call.anchor.tensor, *inputs)  # type: ignore[no-any-return,no-untyped-call]


Rule = Callable[[Forward, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""A rule runs one call that uses a leaf, or returns NotImplemented when the call is not of the form it knows."""

Rules = Mapping[Callable[..., Any], Rule]
