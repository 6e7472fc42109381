"""A forward without randomness: dropout keeps everything, draws are their mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hushgrad.guards.probing.deterministic_mode import DeterministicMode


def test_random_operators_give_constants() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with DeterministicMode():
        assert torch.equal(F.dropout(x, 0.5, training=True), 2 * x)  # scaled as in training, and nothing is dropped
        assert torch.equal(torch.randn(5), torch.zeros(5))
        assert float(torch.rand(5).std()) == 0
    assert not torch.equal(torch.randn(5), torch.zeros(5))


def test_fused_dropout_is_the_identity_and_so_is_its_backward() -> None:
    """Other fused operators have their dropout set to 0 and scale nothing, forward or backward."""
    x = torch.randn(4, 3, requires_grad=True)
    with DeterministicMode():
        out, _ = torch.native_dropout(x, 0.5, True)
        (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out, x)
    assert torch.equal(gradient, torch.ones_like(x))


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
