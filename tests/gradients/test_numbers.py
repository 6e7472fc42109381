"""What one record adds is within the clip norm to 1e-5, whatever it holds: many values, cancelling, huge, tiny."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measure import distance, norm_of
from torch import Tensor

from hushgrad.arguments import SMALLEST_CLIP_NORM
from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.contribution import Contribution, Plan, Way
from hushgrad.gradients.convolution import Convolution, Geometry
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.oracle import clipped_sum_of
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.rows import Rows
from hushgrad.gradients.tied import Tied

ALLOWED = 1 + 1e-5
WAYS: list[Way] = ["gram", "instantiate"]
BUDGETS = (0, 1 << 28)


def added(parts: Mapping[str, Contribution], limit: float, plan: Plan | None = None, scale: float = 1.0) -> float:
    """Return the norm of what the records add to the sum together, in clip norms."""
    uses = {name: [part] for name, part in parts.items()}
    sums = clipped_sums(uses, clip=FlatClipping(limit), plan=plan, scale=scale)
    return math.sqrt(sum(float(total.double().square().sum()) for total in sums.values())) / limit


def exact_norm(part: Contribution) -> float:
    """Return the norm of the first record's gradient, formed in float64."""
    return float(part.select(torch.tensor([0])).per_example().norm())


@pytest.mark.parametrize("count", [100_000, 1_000_000, 10_000_000])
@pytest.mark.parametrize("value", [0.1, 1 / 3, None])
def test_a_gradient_of_many_values_is_within_the_clip_norm(count: int, value: float | None) -> None:
    gradients = torch.randn(1, count) if value is None else torch.full((1, count), value)
    assert 1 - 1e-5 <= added({"w": Dense(gradients)}, 1.0) <= ALLOWED


@pytest.mark.slow
def test_a_gradient_of_a_hundred_million_values_is_within_the_clip_norm() -> None:
    assert 1 - 1e-5 <= added({"w": Dense(torch.full((1, 100_000_000), 0.1))}, 1.0) <= ALLOWED


def clusters(positions: int, p: int, d: int, share: float) -> OuterProducts:
    """Two groups of positions, each all alike, whose products all but cancel: rounding has one direction."""
    sign = torch.ones(1, positions, 1)
    sign[:, positions // 2 :] = -1
    left = torch.rand(1, 1, p) + 0.5 + share * torch.randn(1, 1, p) * sign
    return OuterProducts(left, (torch.rand(1, 1, d) + 0.5) * sign)


def common_mode(positions: int, p: int, d: int, share: float) -> OuterProducts:
    """One large part that all positions share, and that the other factor cancels."""
    sign = torch.ones(1, positions, 1)
    sign[:, positions // 2 :] = -1
    left = torch.rand(1, 1, p) + 0.5 + share * torch.randn(1, positions, p)
    return OuterProducts(left, (torch.rand(1, 1, d) + 0.5) * sign)


@pytest.mark.parametrize("record", [clusters, common_mode])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("positions", [2, 8, 32, 48, 64, 256, 2048])
def test_products_that_cancel_are_within_the_clip_norm(
    positions: int, way: Way, record: Callable[..., OuterProducts]
) -> None:
    for share in (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-6):
        for width in (16, 64):
            part = record(positions, width, 16, share)
            limit = exact_norm(part) / 3
            for budget in BUDGETS:
                assert 1 - 1e-3 <= added({"w": part}, limit, Plan(way, keep_bytes=budget)) <= ALLOWED


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("positions", "p", "d"), [(8, 50_000, 8), (40, 4096, 16), (4096, 3, 4), (20_000, 1, 1)])
def test_products_of_equal_values_are_within_the_clip_norm(positions: int, p: int, d: int, way: Way) -> None:
    """Rounding of equal terms has one direction: sums over width and over positions drift the most."""
    if way == "gram" and positions > 5000:
        pytest.skip("Gram matrices of so many positions are never taken")
    for value in torch.rand(4).tolist():
        part = OuterProducts(torch.full((1, positions, p), value), torch.full((1, positions, d), 0.7))
        for budget in BUDGETS:
            limit = 0.5 * value * 0.7 * positions * math.sqrt(p * d)
            assert 1 - 1e-5 <= added({"w": part}, limit, Plan(way, keep_bytes=budget)) <= ALLOWED


@pytest.mark.parametrize("share", [0.1, 1e-2, 1e-3, 1e-4, 1e-6])
def test_one_row_looked_up_4096_times_that_cancels_is_within_the_clip_norm(share: float) -> None:
    gradients = torch.randn(1, 4096, 64)
    gradients += share / 64 * torch.randn(1, 1, 64) - gradients.mean(1, keepdim=True)
    part = Rows(torch.zeros(1, 4096, dtype=torch.long), gradients, 3)
    assert added({"w": part}, 0.01 * share) <= ALLOWED


@pytest.mark.parametrize("positions", [4, 200])
@pytest.mark.parametrize("share", [0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_uses_of_a_tied_table_that_cancel_are_within_the_clip_norm(share: float, positions: int) -> None:
    ids = torch.arange(positions).remainder(7).unsqueeze(0)
    left = torch.nn.functional.one_hot(ids, 7).float() * torch.rand(1, positions, 1)
    right = torch.randn(1, positions, 16)
    rows = share * torch.randn(1, positions, 16) - left.gather(2, ids.unsqueeze(2)) * right
    part = Tied(Rows(ids, rows, 7), OuterProducts(left, right))
    assert 1 - 1e-3 <= added({"w": part}, exact_norm(part) / 3) <= ALLOWED


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [6, 20])
@pytest.mark.parametrize("share", [1.0, 1e-2, 1e-4])
def test_a_convolution_that_cancels_is_within_the_clip_norm(share: float, size: int, way: Way) -> None:
    geometry = Geometry((8, 4, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    inputs = torch.rand(1, 4, 1, 1) + 0.5 + share * torch.randn(1, 4, size, size)
    outputs = torch.randn(1, 8, size, size)
    outputs -= outputs.mean((2, 3), keepdim=True)
    for budget in BUDGETS:
        assert added({"w": Convolution(inputs, outputs, geometry)}, 1e-3, Plan(way, keep_bytes=budget)) <= ALLOWED


@pytest.mark.parametrize("limit", [1e-8, 1e-15, 1e-18, SMALLEST_CLIP_NORM])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_a_clip_norm_whose_square_underflows_is_kept(limit: float, scale: float) -> None:
    size = limit / scale
    parts = {
        "dense": Dense(torch.randn(1, 4096) * size),
        "product": OuterProducts(torch.randn(1, 1, 64) * size, torch.randn(1, 1, 64)),
        "rows": Rows(torch.zeros(1, 4, dtype=torch.long), torch.randn(1, 4, 8) * size, 3),
        "gram": OuterProducts(torch.randn(1, 64, 64) * size, torch.randn(1, 64, 64)),
    }
    for name, part in parts.items():
        assert 1 - 1e-5 <= added({name: part}, limit, Plan("gram"), scale) <= ALLOWED
    assert 1 - 1e-5 <= added(parts, limit, None, scale) <= ALLOWED


@settings(max_examples=80, deadline=None)
@given(
    small=st.integers(-37, 0),
    large=st.integers(0, 37),
    exponent=st.integers(-20, 30),
    scale=st.sampled_from([1.0, 1e6]),
    positions=st.sampled_from([1, 2, 32, 300]),
    way=st.sampled_from(WAYS),
)
def test_tiny_factors_beside_huge_ones_are_within_every_clip_norm(
    small: int, large: int, exponent: int, scale: float, positions: int, way: Way
) -> None:
    """Guarantee: a finite one contributes never more than its limit times 1 + 1e-5, also where its squared norm
    overflows or underflows float32 or its terms cancel.
    """
    left, right = (torch.rand(1, positions, width) + 0.5 for width in (3, 4))
    part = OuterProducts(left * 10.0**small, right * 10.0**large)
    limit = max(10.0**exponent, SMALLEST_CLIP_NORM)
    found = added({"w": part}, limit, Plan(way), scale)
    assert found <= ALLOWED
    norm = exact_norm(part) * scale / limit
    assert not math.isfinite(norm) or abs(found - min(norm, 1.0)) <= 1e-4 * min(norm, 1.0) + 1e-12


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 5),
    positions=st.sampled_from([1, 3, 40, 60]),
    shares=st.lists(st.floats(1e-7, 1.0), min_size=5, max_size=5),
    way=st.sampled_from([None, *WAYS]),
    budget=st.sampled_from(BUDGETS),
)
def test_sums_with_records_that_cancel_are_those_of_float64(
    batch: int, positions: int, shares: list[float], way: Way | None, budget: int
) -> None:
    """What is left may be rounded by float32 as its terms are, at most a hundred times as large; not its norm.

    Where gradients are formed, as torch forms them, float32 rounds whatever is left of them, and that is what is
    measured and added: then such records are left out of the comparison with float64, and held to the clip norm alone.

    Guarantee: what such an example adds is what was measured, to the rounding of float64, however its terms cancel.
    """
    least = 0.0 if way == "gram" else 0.01
    records = [common_mode(positions, 8, 6, max(share, least)) for share in shares[:batch]]
    part = OuterProducts(torch.cat([one.left for one in records]), torch.cat([one.right for one in records]))
    exact = {"w": part.select(torch.arange(batch)).per_example()}
    limit = float(norm_of(exact).median())
    plan = Plan(way, keep_bytes=budget)
    sums: dict[str, Tensor] = clipped_sums({"w": [part]}, clip=FlatClipping(limit), plan=plan)
    assert distance(sums, clipped_sum_of(exact, FlatClipping(limit))) <= max(1e-6, batch * positions * 2.0**-24 * 100)
    part = common_mode(positions, 8, 6, min(shares))
    assert added({"w": part}, exact_norm(part), plan) <= ALLOWED


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_that_may_drop_digits_do_not_while_norms_and_sums_are_taken(precision: str) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    try:
        part = OuterProducts(torch.randn(2, 5, 64), torch.randn(2, 5, 64))
        assert added({"w": part.select(torch.tensor([0]))}, 1.0) <= ALLOWED
        assert added({"w": part}, 1.0) <= 2 * ALLOWED
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32 == before[1]
    finally:
        torch.set_float32_matmul_precision(before[0])


def test_gradients_that_are_zero_beside_huge_factors_add_nothing_and_change_nothing() -> None:
    left, right = torch.randn(3, 40, 6), torch.randn(3, 40, 5)
    left[1], right[1] = 0.0, 1e15
    whole = clipped_sums({"w": [OuterProducts(left, right)]}, clip=FlatClipping(0.5), plan=Plan("gram"))
    rest = clipped_sums({"w": [OuterProducts(left[[0, 2]], right[[0, 2]])]}, clip=FlatClipping(0.5))
    assert distance(whole, rest) <= 1e-6
