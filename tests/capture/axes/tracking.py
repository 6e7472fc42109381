"""Where the batch is said to lie, against what really changes when one example of the input does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hushgrad.capture.axes.batch_axes import BatchAxes
from hushgrad.capture.mode import CaptureMode
from hushgrad.capture.operators.operator import ForwardContext, GraphAnchor
from hushgrad.capture.uses import UsePool

Transform = Callable[[Tensor], Tensor]

UNTRACKED = "untracked"
B = 3


def tracked_axis(transform: Transform, x: Tensor) -> tuple[Tensor, int | str | None]:
    """Run `transform` under the mode on a batch-first `x`; return its output and the axis that is claimed."""
    axes = BatchAxes()
    axes.seed((x,), x.shape[0])
    mode = CaptureMode(ForwardContext(UsePool(), GraphAnchor(), axes, {}, x.shape[0], []), lambda: True)
    with mode:
        out = transform(x)
    return out, axes.get(out) if axes.descends(out) else UNTRACKED


def changed_outside_own_rows(transform: Transform, x: Tensor, out: Tensor, axis: int) -> bool:
    """Whether changing example i changes the output anywhere but in the rows that `axis` assigns to i."""
    batch = x.shape[0]
    for i in range(batch):
        moved = x.clone()
        moved[i] = moved[i] * -1.7 + 0.3 * torch.randn_like(moved[i]) + 5
        changed = transform(moved)
        # Solvers of LAPACK do not round alike in every place of a batch.
        differs = ~torch.isclose(changed, out, rtol=1e-9, atol=1e-9, equal_nan=True).movedim(axis, 0)
        rows = differs.reshape(batch, -1).any(1)
        rows[i] = False
        if rows.any():
            return True
    return False


def assert_axis_is_true(transform: Transform, x: Tensor) -> int | str | None:
    out, axis = tracked_axis(transform, x)
    if isinstance(axis, int):
        assert axis < out.ndim
        assert out.shape[axis] % x.shape[0] == 0
        assert not changed_outside_own_rows(transform, x, out, axis)
    return axis


W = torch.randn(B, B)
CONSTANT = torch.randn(B, B, B)
PERMUTATION = torch.tensor([2, 0, 1])


def assigned(target: Tensor, index: object, value: object) -> Tensor:
    target[index] = value  # type: ignore[index]
    return target
