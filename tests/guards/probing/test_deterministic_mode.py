"""A forward without randomness: dropout keeps everything and scales, draws are one quantile of their law."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hushgrad.guards.probing.deterministic_mode import DeterministicMode


def test_random_operators_give_constants() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with DeterministicMode():
        assert torch.equal(F.dropout(x, 0.5, training=True), 2 * x)  # scaled as in training, and nothing is dropped
        assert torch.allclose(torch.randn(5), torch.full((5,), 0.5))  # the mean and half a standard deviation
        assert float(torch.rand(5).std()) == 0
    assert float(torch.randn(5).std()) > 0


def test_fused_dropout_scales_by_its_rate_and_so_does_its_backward() -> None:
    """Other fused operators have their dropout set to 0; their rates are told."""
    x = torch.randn(4, 3, requires_grad=True)
    with DeterministicMode():
        out, _ = torch.native_dropout(x, 0.5, True)
        (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out, 2 * x)
    assert torch.equal(gradient, torch.full_like(x, 2.0))


def test_a_mode_tells_whether_anything_random_was_met() -> None:
    x = torch.randn(2, 1, 4, 3)
    for run, is_random in (
        (lambda: F.linear(x, x[0, 0]), False),
        (lambda: F.dropout(x, 0.5, training=False), False),
        (lambda: F.scaled_dot_product_attention(x, x, x), False),
        (lambda: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), True),
        (lambda: F.dropout(x, 0.5, training=True), True),
        (lambda: torch.rand(3), True),
    ):
        mode = DeterministicMode()
        with mode:
            run()  # type: ignore[no-untyped-call]
        assert mode.was_needed is is_random
        assert mode.unknown is None


def test_a_random_operator_without_a_constant_is_named() -> None:
    mode = DeterministicMode()
    with mode:
        torch.binomial(torch.ones(3), torch.full((3,), 0.5))
    assert (mode.was_needed, mode.unknown) == (True, "aten::binomial")
