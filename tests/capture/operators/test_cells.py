"""Each cell's derivative is that of its own step."""

from __future__ import annotations

import pytest
import torch

from hushgrad.capture.operators.recurrent import CELLS

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
N, H = 3, 5


@pytest.mark.parametrize("kind", CELLS)
def test_the_derivative_of_a_step_is_the_one_that_autograd_finds(kind: str) -> None:
    cell = CELLS[kind]
    widths = (GATES[kind] * H, GATES[kind] * H, H, H)
    inputs = [torch.randn(N, width, dtype=torch.float64, requires_grad=True) for width in widths]
    step = cell.step(*inputs)
    dh, dc = torch.randn_like(step.h), torch.randn_like(step.c)
    wanted = torch.autograd.grad([step.h, step.c], inputs, [dh, dc], allow_unused=True)
    found = cell.back(tuple(part.detach() for part in step.kept), dh, dc)
    for value, expected in zip((found.from_input, found.from_state, found.h, found.c), wanted, strict=True):
        zero = torch.zeros(()).double()
        torch.testing.assert_close(
            zero if value is None else value, zero if expected is None else expected, rtol=1e-12, atol=1e-12
        )
