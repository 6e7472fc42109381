"""Numbers that follow the whole batch may be used for what they are, and nothing may change with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.item_statistics import other_value, require_no_statistics, statistics_in
from hushgrad.guards.probing.loss_trace import LossTrace
from hushgrad.guards.probing.widths import Drawn

B, T = 4, 6
X = torch.randn(B, 3, generator=torch.Generator().manual_seed(1))
MASK = torch.arange(T) < torch.tensor([6, 2, 4, 3])[:, None]


def require(losses: Callable[[Tensor, Any], Tensor], number: Any) -> None:
    """Look at losses of outputs `[B, T]` and of an item with a number that follows the batch."""
    item = (X, MASK, number)
    drawn = Drawn([0] * B, range(B), item, B, None, statistics=frozenset({(2,)}))
    trace = LossTrace(B, item, {})
    try:
        trace.given(((X,), {}), ())
        output = torch.randn(B, T, generator=torch.Generator().manual_seed(2)).requires_grad_() * 1
        trace.returned(output, (), torch.nn.Module())
        trace.loss(losses(output, item), is_rows=True)
    finally:
        trace.end()
    require_no_statistics(trace.program, drawn)


@pytest.mark.parametrize(
    ("losses", "number"),
    [
        (lambda out, item: (out * item[1]).sum(1) / item[2], torch.tensor(15)),
        (lambda out, item: (out * item[1]).sum(1) / (1 + item[2][1]), torch.tensor([3, 1])),
        (lambda out, item: out.sum(1) * torch.where(item[2], 1.0, 0.1), torch.tensor(True)),
        (lambda out, item: (out * item[1]).sum(1) / item[2], 15),
        (lambda out, item: out[:, : item[2] - 1].sum(1), T),
        (lambda out, item: out.roll(item[2] // 2, 1)[:, 0], 8),
    ],
    ids=["a divisor", "a count", "a flag", "a divisor of Python's", "a cut below the longest", "a turn"],
)
def test_losses_that_follow_a_number_of_the_batch_are_refused(losses: Any, number: Any) -> None:
    with pytest.raises(CrossSampleLeakError, match="a number that collate_fn makes of the whole batch"):
        require(losses, number)


@pytest.mark.parametrize(
    ("losses", "number"),
    [
        (lambda out, item: (out * item[1]).sum(1), torch.tensor(15)),
        (lambda out, item: (out * item[1])[:, : item[2]].sum(1), T),
        (lambda out, item: (out * item[1]).sum(1) / 15, 15),
        (lambda out, item: (out * item[1]).view(B, -1).sum(1) / item[1].sum(1), 15),
    ],
    ids=["unused", "padding cut off", "a constant of the code", "the record's own"],
)
def test_a_number_that_nothing_changes_with_is_no_fault(losses: Any, number: Any) -> None:
    require(losses, number)


def test_what_tensors_hold_and_what_python_can_read_is_told_apart() -> None:
    item = {"x": X, "count": torch.tensor(3), "longest": 7, "flag": True, "size": 9}
    paths = frozenset({("count",), ("longest",), ("flag",)})
    tensors, numbers = statistics_in(Drawn([0], [0], item, 1, None, statistics=paths))
    assert [int(tensor) for tensor in tensors] == [3]
    assert sorted(numbers) == [1.0, 7.0]


@pytest.mark.parametrize("values", [torch.tensor(True), torch.tensor([1, 2]), torch.tensor(0.0)])
def test_another_value_is_of_the_same_kind_and_differs_everywhere(values: Tensor) -> None:
    other = other_value(values)
    assert (other.dtype, other.shape) == (values.dtype, values.shape)
    assert bool((other != values).all())
