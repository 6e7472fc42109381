"""A forward without randomness: dropout keeps everything and scales, draws are one quantile of their law."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hushgrad.guards.probing.deterministic_mode import QUANTILES, DeterministicMode


def test_random_operators_give_constants() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with DeterministicMode():
        assert torch.equal(F.dropout(x, 0.5, training=True), 2 * x)  # scaled as in training, and nothing is dropped
        assert torch.allclose(torch.randn(5), torch.full((5,), 0.5))  # the mean and half a standard deviation
        assert float(torch.rand(5).std()) == 0
    assert float(torch.randn(5).std()) > 0


def test_beyond_the_first_quantile_draws_are_one_number_for_each_column_and_rows_are_alike() -> None:
    mode = DeterministicMode(QUANTILES[-1])
    with mode:
        draws = [torch.randn(4, 3), torch.rand(2, 4, 3), torch.empty(4, 3).normal_(2.0, 3.0)]
        alone = [torch.randn(5), torch.randn(4, 1)]
    assert mode.columns == [3, 3, 3]
    assert all(float(draw.std(-1).min()) > 0 for draw in draws)
    assert all(torch.equal(draw, draw[..., :1, :].expand_as(draw)) for draw in draws)
    assert torch.allclose(draws[2], 2 + 3 * draws[0])
    assert torch.allclose(alone[0], torch.full((5,), 1.2816), atol=1e-4)  # the quantile 0.9


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
