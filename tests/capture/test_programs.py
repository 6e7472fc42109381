"""Random programs of data operators and parameters: their clipped sums are exact, or they are refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from measure import captured, clipped, distance, norm_of, reference
from torch import Tensor, nn

from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import HushgradError
from hushgrad.gradients.oracle import clipped_sum_of

Step = Callable[[Tensor, "Program"], Tensor]


class Program(nn.Module):
    """A chain of steps; parameters of size 2, the size of everything, so that shapes tell nothing."""

    def __init__(self, steps: list[int]) -> None:
        super().__init__()
        self.steps = steps
        self.row = nn.Parameter(torch.randn(2))
        self.matrix = nn.Parameter(torch.randn(2, 2))
        self.cube = nn.Parameter(torch.randn(2, 2, 2))
        self.one = nn.Parameter(torch.randn(1))
        self.linear, self.conv, self.norm = nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        """Run the steps that fit."""
        for step in self.steps:
            if 1 <= x.ndim <= 5 and x.numel() <= 2048:
                x = STEPS[step](x, self)
        return x.reshape(x.shape[0], -1) if x.ndim else x


STEPS: list[Step] = [
    lambda x, m: m.linear(x),
    lambda x, m: m.linear(x).tanh(),
    lambda x, m: m.norm(x),
    lambda x, m: m.conv(x),
    lambda x, m: x + m.row,
    lambda x, m: x * m.matrix,
    lambda x, m: m.cube - x,
    lambda x, m: x * m.one,
    lambda x, m: x @ m.matrix,
    lambda x, m: m.matrix @ x,
    lambda x, m: F.linear(x, m.matrix.t(), m.row),
    lambda x, m: torch.einsum("...d,dp->...p", x, m.matrix),
    lambda x, m: torch.cat([x, m.row.expand_as(x)], -1),
    lambda x, m: torch.cat([m.matrix.expand(x.shape[0], 2, 2), x], 1),
    lambda x, m: F.prelu(x, m.one),
    lambda x, m: torch.maximum(x, m.row),
    lambda x, m: x + m.matrix[:, :1],
    lambda x, m: x + m.cube.sum(0),
    lambda x, m: torch.stack([x * m.one, x], 0),
    lambda x, m: x.transpose(0, 1),
    lambda x, m: x.transpose(-1, -2),
    lambda x, m: x.movedim(0, -1),
    lambda x, m: x.unsqueeze(0),
    lambda x, m: x.unsqueeze(1),
    lambda x, m: x.squeeze(0),
    lambda x, m: x[:, 0],
    lambda x, m: x[0],
    lambda x, m: x[None],
    lambda x, m: x.flatten(0, 1),
    lambda x, m: x.unflatten(0, (-1, 2)),
    lambda x, m: x.reshape(2, 2, -1),
    lambda x, m: x.reshape(-1, 2),
    lambda x, m: x.sum(0),
    lambda x, m: x.mean(-1),
    lambda x, m: x.softmax(-1),
    lambda x, m: x.flip(0),
    lambda x, m: x - x.mean(0, keepdim=True),
    lambda x, m: x @ x.mT,
    lambda x, m: x + x.mT,
    lambda x, m: x.expand(2, *x.shape),
    lambda x, m: x.repeat(2, *[1] * (x.ndim - 1)),
    lambda x, m: torch.stack(list(x), -1),
]


def is_per_example(model: Program, batch: Tensor) -> bool:
    """Whether the program gives for one example alone what it gives for it in the batch."""
    with torch.no_grad():
        whole = model(batch)
        alone = [model(batch[i : i + 1]) for i in range(batch.shape[0])]
    if whole.ndim != 2 or whole.shape[0] != batch.shape[0]:
        return False
    return all(part.shape == whole[:1].shape for part in alone) and torch.allclose(torch.cat(alone), whole)


def losses(out: Tensor) -> Tensor:
    return (out * torch.linspace(-1, 2, out.shape[1], dtype=out.dtype)).sin().sum(1)


@settings(max_examples=400, deadline=None)
@given(
    batch=st.integers(1, 3),
    rest=st.sampled_from([(2,), (2, 2), (2, 2), (2, 2, 2), (1, 2)]),
    steps=st.lists(st.sampled_from(range(len(STEPS))), min_size=1, max_size=7),
)
def test_a_random_program_is_summed_exactly_or_refused(batch: int, rest: tuple[int, ...], steps: list[int]) -> None:
    """A program that is per example gives exact clipped sums or a typed error, whatever layouts it passes through."""
    model, x = Program(steps).double(), torch.randn(batch, *rest, dtype=torch.float64)
    try:
        if not is_per_example(model, x):
            return
        per_example = reference(model, x, losses)
    except (RuntimeError, IndexError):
        return  # the steps do not fit the shapes
    limit = float(norm_of(per_example).median())
    if limit == 0:
        return
    try:
        uses = captured(model, x, losses)
    except HushgradError:
        return
    # Relative to the clip norm: clipped contributions may cancel to nothing.
    found, wanted = clipped(uses, limit), clipped_sum_of(per_example, FlatClipping(limit))
    assert distance(found, wanted, relative=False) <= 1e-10 * limit
