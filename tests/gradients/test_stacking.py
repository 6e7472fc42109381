"""Contributions that are summed together give the sums that each would give alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.stacking import SMALL_OPERAND, SMALLEST_GROUP, group_by_shape

B = 5


def products(count: int, p: int, d: int, positions: int = 1) -> list[Contribution]:
    return [
        OuterProducts(torch.randn(B, positions, p).double(), torch.randn(B, positions, d).double())
        for _ in range(count)
    ]


def mixed() -> dict[str, Contribution]:
    """Two groups of matrices, one of them wider than high, two of vectors and tables, and some that stay alone."""
    parts = [
        *products(4, 3, 2),
        *products(3, 2, 7),
        *(Dense(torch.randn(B, 4).double()) for _ in range(5)),
        *(Dense(torch.randn(B, 2, 3).double()) for _ in range(3)),
        Dense(torch.randn(B).double()),
        *products(3, 3, 2, positions=4),
        *products(1, 6, 6),
    ]
    return {f"parameter {number}": part for number, part in enumerate(parts)}


def alone_only(contributions: Mapping[str, Contribution]) -> dict[str, torch.Tensor]:
    norms = torch.stack([part.per_example().reshape(B, -1).square().sum(1) for part in contributions.values()])
    weights = FlatClipping(2.0).factors(norms.sum(0).sqrt())
    return {name: torch.einsum("b,b...->...", weights, part.per_example()) for name, part in contributions.items()}


def test_a_group_gives_the_norms_and_sums_of_its_members() -> None:
    contributions = mixed()
    groups, alone = group_by_shape(contributions, Plan())
    assert sorted(len(group.names) for group in groups) == [3, 3, 4, 5]
    assert sorted([*alone, *(name for group in groups for name in group.names)]) == sorted(contributions)
    weights = torch.rand(B).double()
    for group in groups:
        members = [contributions[name] for name in group.names]
        squared = sum(member.measure(Plan())[0] for member in members)
        torch.testing.assert_close(group.measure(Plan()), squared, rtol=1e-12, atol=0)
        for total, member in zip(group.weighted_sums(weights), members, strict=True):
            torch.testing.assert_close(total, member.weighted_sum(weights), rtol=1e-12, atol=1e-14)


def test_clipped_sums_do_not_depend_on_what_is_summed_together() -> None:
    contributions = mixed()
    sums = clipped_sums({name: [part] for name, part in contributions.items()}, clip=FlatClipping(2.0))
    expected = alone_only(contributions)
    assert set(sums) == set(expected)
    for name, total in sums.items():
        torch.testing.assert_close(total, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_example_that_is_not_finite_in_a_group_contributes_nothing(value: float) -> None:
    contributions = {f"parameter {number}": Dense(torch.randn(B, 4)) for number in range(SMALLEST_GROUP)}
    contributions["parameter 0"].gradients[2] = value
    sums = clipped_sums({name: [part] for name, part in contributions.items()}, clip=FlatClipping(2.0))
    kept = torch.arange(B) != 2
    rest = {name: [Dense(part.gradients[kept])] for name, part in contributions.items()}
    for name, total in clipped_sums(rest, clip=FlatClipping(2.0)).items():
        torch.testing.assert_close(sums[name], total)


def test_an_example_whose_square_overflows_in_a_group_is_clipped() -> None:
    contributions = {f"parameter {number}": Dense(torch.randn(B, 4)) for number in range(SMALLEST_GROUP)}
    contributions["parameter 0"].gradients[2] = 1e30
    sums = clipped_sums({name: [part] for name, part in contributions.items()}, clip=FlatClipping(2.0))
    exact = alone_only({name: Dense(part.gradients.double()) for name, part in contributions.items()})
    for name, total in sums.items():
        torch.testing.assert_close(total.double(), exact[name], rtol=1e-5, atol=1e-6)


def test_what_is_large_or_rare_or_forced_another_way_stays_alone() -> None:
    large = {f"large {number}": Dense(torch.zeros(2, SMALL_OPERAND)) for number in range(4)}
    rare = {f"rare {number}": Dense(torch.zeros(2, 3)) for number in range(SMALLEST_GROUP - 1)}
    assert group_by_shape(large | rare, Plan())[0] == []
    forced = {str(number): part for number, part in enumerate(products(4, 3, 2))}
    assert group_by_shape(forced, Plan(way="instantiate"))[0] == []
    assert len(group_by_shape(forced, Plan())[0]) == 1
