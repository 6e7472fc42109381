"""Operands in 16 bits are held as they are, and measured and summed with the bits that wide ones give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients import narrow
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.contribution import Contribution, Plan, Way
from hushgrad.gradients.narrow import Narrow, outer_products
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.placement import Put

B, T, P, D = 4, 96, 40, 24
NARROW = [torch.bfloat16, torch.float16]


def both(dtype: torch.dtype, cancels: bool = False) -> tuple[Narrow, OuterProducts]:
    """The same operands, held in 16 bits and in 32; where terms cancel examples are set apart."""
    left, right = torch.randn(B, T, P).to(dtype), torch.randn(B, T, D).to(dtype)
    if cancels:
        left[0, 1::2], right[0, 1::2] = -left[0, ::2], right[0, ::2]
        left[0, 0] *= 1.5
    return Narrow(OuterProducts(left, right)), OuterProducts(left.float(), right.float())


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
@pytest.mark.parametrize("way", ["gram", "instantiate"])
def test_norms_and_sums_have_the_bits_of_wide_operands(
    way: Way, keep_bytes: int, cancels: bool, dtype: torch.dtype
) -> None:
    """Guarantee: norms and sums have the bits that they have of operands in 32 bits."""
    held, wide = both(dtype, cancels)
    plan, weights_B = Plan(way, keep_bytes), torch.rand(B)
    found, wanted = held.measure(plan), wide.measure(plan)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1].weighted_sum(weights_B), wanted[1].weighted_sum(weights_B))
    for part, other in ((held, wide), (found[1], wanted[1])):
        assert torch.equal(part.per_example(), other.per_example())
        assert torch.equal(part.alone(2).per_example(), other.alone(2).per_example())
        dropped = torch.tensor([True, False, False, True])
        assert torch.equal(part.zeroed(dropped).weighted_sum(weights_B), other.zeroed(dropped).weighted_sum(weights_B))
        rows = torch.tensor([1, 3])
        assert torch.equal(part.select(rows).per_example(), other.select(rows).per_example())
        assert part.select(rows).per_example().dtype == torch.float64
    if way == "gram":  # what is summed later holds no operand in 32 bits
        assert {operand.dtype for operand in found[1].operands} == {dtype}


def test_gradients_are_formed_at_once_only_where_they_take_no_more_than_what_is_held() -> None:
    plan = replace(Plan("instantiate"), keep_bytes=1 << 20)
    few, many = torch.randn(B, T, 8).bfloat16(), torch.randn(B, T, 64).bfloat16()
    small = Narrow(OuterProducts(few, few))
    assert small.formed(plan) is not None
    assert torch.equal(small.formed(plan), torch.bmm(few.float().mT, few.float()))
    between = Narrow(OuterProducts(many, many))  # 16 KiB in 32 bits for 24 in 16, and for 48 in 32: of each example
    assert between.per_example().nbytes <= between.nbytes
    wider = Narrow(OuterProducts(torch.randn(B, T, 128).bfloat16(), torch.randn(B, T, 128).bfloat16()))
    assert wider.wide.formed(plan) is not None
    assert wider.nbytes < wider.per_example().nbytes <= wider.wide.nbytes
    assert wider.formed(plan) is None


def test_only_large_operands_in_16_bits_are_held_so() -> None:
    large = torch.zeros(2, narrow.LARGE_OPERANDS // 8, 4)
    for left, right, is_held in (
        (large.bfloat16(), large.bfloat16(), True),
        (large.bfloat16(), large, False),
        (large, large, False),
        (large[:, :2].bfloat16(), large[:, :2].bfloat16(), False),
    ):
        part = outer_products(left, right)
        assert isinstance(part, Narrow) == is_held
        assert part.wide.operands[0].dtype == torch.float32


class Attention(nn.Module):
    """Three layers that read the same values, one of which is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(D, D)
        self.q, self.k, self.v = (nn.Linear(D, P) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.q(h) * self.k(h) + self.v(h) * self.v(h.tanh())


@pytest.mark.parametrize("dtype", NARROW)
def test_a_model_in_16_bits_has_the_sums_of_wide_operands_and_holds_shared_ones_once(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    torch.manual_seed(2)
    model, x = Attention().to(dtype), torch.randn(B, T, D).to(dtype)
    found: dict[int, dict[str, Tensor]] = {}
    held: dict[int, int] = {}
    for large in (1, 1 << 40):
        monkeypatch.setattr(narrow, "LARGE_OPERANDS", large)
        pool = UsePool(Plan("gram"))
        pool.batch_size = B
        capturing = Scope(model, pool)
        model(x).float().square().sum().backward()
        uses = pool.take()
        parts: list[Contribution] = [part for name in ("q.weight", "k.weight") for part in uses[name]]
        held[large] = sum({operand.data_ptr(): operand.nbytes for part in parts for operand in part.operands}.values())
        found[large] = clipped_sums(uses, clip=FlatClipping(0.5), plan=Plan("gram"))
        capturing.detach()
    narrowly, widely = found.values()
    assert all(torch.equal(narrowly[name], total) for name, total in widely.items())
    assert [held[1], held[1 << 40]] == [2 * B * T * (D + 2 * P), 4 * B * T * 2 * (D + P)]


def test_the_part_of_a_matrix_that_is_cut_stays_narrow() -> None:
    """The parts of processes, each of operands in 16 bits, are together the whole."""

    class Columns(Put):
        def __init__(self, place: int) -> None:
            self._place = place

        def __call__(self, operand: Tensor, dims: Mapping[int, int]) -> Tensor:
            return operand.chunk(2, dims[0])[self._place] if 0 in dims else operand

    held, wide = both(torch.bfloat16)
    parts = [held.in_row(Columns(place)) for place in range(2)]
    assert all(operand.dtype == torch.bfloat16 for part in parts for operand in part.operands)
    found = torch.cat([part.per_example() for part in parts], 1)
    assert torch.allclose(found, wide.per_example(), rtol=1e-6, atol=1e-6)
