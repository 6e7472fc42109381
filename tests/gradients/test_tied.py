"""Tables that are looked up and multiplied with: norms and sums without gradients of the size of the table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.combine import combine
from hushgrad.gradients.contribution import Plan
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.rows import Rows
from hushgrad.gradients.tied import Tied

B, S, T, V, D = 4, 5, 3, 7, 6


def uses(dtype: torch.dtype = torch.float64) -> tuple[Rows, OuterProducts]:
    rows = Rows(torch.randint(0, V, (B, S)), torch.randn(B, S, D, dtype=dtype), V)
    return rows, OuterProducts(torch.randn(B, T, V, dtype=dtype), torch.randn(B, T, D, dtype=dtype))


def dense(*parts: Rows | OuterProducts) -> Tensor:
    return sum((part.per_example() for part in parts[1:]), parts[0].per_example())


@pytest.mark.parametrize("way", ["gram", "instantiate"])
def test_norms_and_sums_are_those_of_the_gradients(way: str) -> None:
    first, second = uses(), uses()
    tied = combine([*first, *second])
    assert isinstance(tied, Tied)
    wanted = dense(*first, *second)
    norms, measured = tied.measure(Plan(way=way))  # type: ignore[arg-type]
    torch.testing.assert_close(norms, wanted.square().sum((1, 2)))
    weights = torch.rand(B, dtype=torch.float64)
    torch.testing.assert_close(measured.weighted_sum(weights), torch.tensordot(weights, wanted, 1))
    torch.testing.assert_close(tied.per_example(), wanted)


def test_uses_that_cancel_have_the_norm_of_what_is_left() -> None:
    """A lookup and a product that are all but opposite: the norm must not be lost to rounding."""
    rows = torch.randn(B, 1, D)
    ids = torch.randint(0, V, (B, 1))
    left = torch.nn.functional.one_hot(ids, V).float()
    tied = Tied(Rows(ids, rows, V), OuterProducts(left, -rows * (1 + 1e-4)))
    norms, _ = tied.measure(Plan())
    torch.testing.assert_close(norms, tied.per_example().double().square().sum((1, 2)), rtol=1e-3, atol=0)
    assert bool((norms > 0).all())


@pytest.mark.parametrize("value", [1e30, torch.inf, torch.nan])
def test_a_huge_or_broken_example_reaches_no_other(value: float) -> None:
    rows, outer = uses(torch.float32)
    rows.gradients[1] = value
    found = clipped_sums({"w": [rows, outer]}, clip=FlatClipping(0.5))["w"]
    expected = clipped_sums({"w": [Dense(dense(rows, outer))]}, clip=FlatClipping(0.5))["w"]
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_no_gradient_of_the_size_of_the_table_is_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Rows, OuterProducts, Tied):
        monkeypatch.setattr(kind, "per_example", lambda self: pytest.fail("formed [B, V, d]"))
    rows = Rows(torch.randint(0, 500, (B, S)), torch.randn(B, S, D), 500)
    outer = OuterProducts(torch.randn(B, T, 500), torch.randn(B, T, D))
    assert clipped_sums({"w": [rows, outer]}, clip=FlatClipping(0.5))["w"].shape == (500, D)
