"""`F.grouped_mm`: rows sorted by a number, each times the matrix of this number, as mixtures of experts call it.

A worked example: B = 2 examples of two tokens, experts 1 0 0 0. Sorted, the rows are of examples 0 1 1 0, the groups
end at 3 and 4, and rows 0, 1, 2 meet matrix 0, row 3 matrix 1. Example 0's gradient of `[E, d, p]` has the outer
products of row 0 in its first matrix and of row 3 in its second one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hushgrad.capture.axes.owners import BatchLocation, SegmentIds, row_of
from hushgrad.capture.axes.selections import groups_follow_key
from hushgrad.capture.leaves import TrackedTensor
from hushgrad.capture.operators.operator import ForwardContext, Operator, Recorded, capture
from hushgrad.capture.operators.registration import captures
from hushgrad.capture.uses import UsePool
from hushgrad.gradients.dense import Dense
from hushgrad.torch_internals import GROUPED_MM


@dataclass(frozen=True, eq=False)
class GroupedProducts(Operator):
    """Rows `[S, d]` times matrices `[E, d, p]`, the e-th for rows up to `ends[e]`."""

    autocasts: ClassVar[bool] = True
    name: str
    weight: TrackedTensor
    axis: BatchLocation

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the products; keep what they are made of."""
        x, weight, ends = inputs
        return GROUPED_MM(x, weight, offs=ends), (x, weight, ends)

    def input_gradients(
        self, saved: tuple[Tensor | None, ...], gradient: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Return the gradient of the rows."""
        _, weight, ends = saved
        assert weight is not None
        if not needed[0]:
            return (None, None, None)
        return (GROUPED_MM(gradient.contiguous(), weight.mT, offs=ends), None, None)

    def record(self, pool: UsePool, saved: tuple[Tensor | None, ...], gradient: Tensor) -> Recorded:
        """Record, for each matrix, the outer products of each example's own rows in its group."""
        x, _, ends = saved
        assert x is not None
        assert ends is not None
        batch = pool.examples(gradient, self.axis, self.name).shape[0]  # refuses rows that are not the batch's
        own = row_of(x, self.axis, batch)
        assert own is not None
        parts, start = [], 0
        for end in ends.tolist():
            rows = SegmentIds(0, own.rows[start:end])
            left, right = (
                pool.examples(value[start:end], rows, self.name) for value in (x.detach(), gradient.detach())
            )
            parts.append(torch.bmm(left.mT, right))
            start = end
        return [(self.weight, Dense(torch.stack(parts, 1)))]


@captures(GROUPED_MM, axis=None)  # `selections.follow_selections` says where the rows are
def grouped_mm(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `grouped_mm(rows, matrices, offs=ends)` whose groups are those of the key that the rows are sorted by."""
    if len(args) != 2 or set(kwargs) - {"offs", "bias", "out_dtype"} or kwargs.get("out_dtype") is not None:
        return NotImplemented
    x, weight = args
    leaf, location, ends = context.leaf(weight), context.axes.location(x), kwargs.get("offs")
    if leaf is None or not context.is_data(x) or context.leaf(x) is not None or ends is None:
        return NotImplemented
    if context.batch_size != 1 and not groups_follow_key(x, location, weight, kwargs):
        return NotImplemented
    return capture(GroupedProducts(f"grouped_mm({leaf.name})", leaf, location), context, x, leaf.value, ends)
