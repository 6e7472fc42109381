"""Whole users are drawn, kept together, and counted. Keys are fixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hushgrad import UserSampling
from hushgrad.accounting import PoissonSampled
from hushgrad.errors import DatasetError, InvalidArgumentError, UnsupportedSamplerError
from hushgrad.randomness import KeyStream
from hushgrad.sampling import Cutting, PhysicalBatch, PrivateLoader
from hushgrad.sampling.records import Share, cut
from hushgrad.sampling.scheme import Batches, Sampler

IDS = [0, 1, 0, 2, 2, 1, 0, 3]


def scheme(**more: Any) -> UserSampling:
    return UserSampling(**({"rate": 0.5, "users": IDS, "examples_per_user": 3, "told_by": "name"} | more))


class Noted:
    def __init__(self) -> None:
        self.items: list[PhysicalBatch] = []

    def before_draw(self) -> None:
        pass

    def begin(self, batch: PhysicalBatch, item: object) -> None:
        self.items.append(batch)

    def lost(self, batch: PhysicalBatch) -> None:
        raise AssertionError


def items_of(sampling: Any, count: int, steps: int, key: int = 1, **more: Any) -> list[PhysicalBatch]:
    noted = Noted()
    loader = PrivateLoader(
        range(count), sampling, steps_per_pass=steps, stream=KeyStream.fixed_for_tests(key), observer=noted, **more
    )
    for _ in loader:
        pass
    return noted.items


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 2**30), st.integers(0, 5))
def test_a_draw_holds_all_records_of_a_user_in_one_item_or_none(owners: list[int], key: int, room: int) -> None:
    """Guarantee: a draw holds all records of a user or none of them.

    Guarantee: where whole users are drawn, all records of a user are in one item.
    Guarantee: the records of one user are in one item.
    """
    most = max(Counter(owners).values())
    sampling = UserSampling(rate=0.4, users=owners, examples_per_user=most)
    items = items_of(sampling, len(owners), 3, key, max_physical_batch_size=most + room)
    for step in range(3):
        own = [item for item in items if item.step == step]
        users = [set(item.owners) for item in own]
        assert sum(map(len, users)) == len(set().union(*users))
        drawn = [record for item in own for record in item.indices]
        codes = sampling.users.codes
        assert sorted(drawn) == [record for record in range(len(owners)) if codes[record] in set().union(*users)]
        assert [int(codes[record]) for record in drawn] == [owner for item in own for owner in item.owners]
        assert [item.last for item in own] == [False] * (len(own) - 1) + [True]
        assert all(list(item.owners) == sorted(item.owners) for item in own)
        assert all(len(item.indices) <= most + room for item in own)


def test_users_take_part_with_the_rate_independently_of_how_many_records_they_have() -> None:
    """False alarm 1e-6 each: counts of 8,000 draws are binomial, and pairs of users independent (chi-square)."""
    sampling = UserSampling(rate=0.3, users=IDS, examples_per_user=3)
    draws = list(sampling.sampler(8, KeyStream.fixed_for_tests(5)).one_pass(8000, 0))
    took = np.array([[any(IDS[i] == user for i in draw) for user in range(4)] for draw in draws])
    for user in range(4):
        assert stats.binomtest(int(took[:, user].sum()), 8000, 0.3).pvalue > 1e-6
    table = [[int((took[:, 0] & took[:, 1]).sum()), int((took[:, 0] & ~took[:, 1]).sum())],
             [int((~took[:, 0] & took[:, 1]).sum()), int((~took[:, 0] & ~took[:, 1]).sum())]]  # fmt: skip
    assert stats.chi2_contingency(table).pvalue > 1e-6


def test_it_says_what_it_is() -> None:
    sampling = scheme()
    assert sampling.event(1.5) == PoissonSampled(0.5, 1.5)
    assert sampling.unit == "one user (all records with the same name, at most 3 of them)"
    assert sampling.describe() == "Poisson, every user independently with rate 0.5 in every step"
    assert sampling.units_in(8) == 4
    assert sampling.expected_batch_size(8) == 2
    assert sampling.inclusion_probability(8) == 0.5
    assert sampling.poisson_rate is None  # records are not drawn independently of each other
    assert not sampling.can_be_declared
    assert sampling == scheme() != scheme(users=[9, *IDS[1:]])
    assert "[0, 1" not in repr(sampling)
    assert [condition.name for condition in sampling.on_trust] == ["users of records"]


def test_the_number_of_users_is_declared_and_does_not_follow_from_who_has_a_record() -> None:
    """A user who had no record, or whose last one was dropped, is counted all the same: B is that of all users."""
    sampling = scheme(population=10)
    assert sampling.expected_batch_size(8) == 5
    assert sampling.units_in(8) == 10
    with pytest.raises(InvalidArgumentError, match="at least the number of users"):
        scheme(population=3)
    assert UserSampling.with_expected_users(2, users=IDS, examples_per_user=3, population=10).rate == 0.2
    assert UserSampling.with_expected_users(2, users=IDS, examples_per_user=3).rate == 0.5
    with pytest.raises(InvalidArgumentError, match="at most the number of users"):
        UserSampling.with_expected_users(5, users=IDS, examples_per_user=3)


def test_records_that_are_whole_users_are_drawn_as_records_are_and_protected_as_users() -> None:
    sampling = UserSampling(rate=0.25, users=None, told_by="hospital")
    assert sampling.unit == "one user (each record of the data set is all that one hospital has)"
    assert sampling.ownership is None
    assert sampling.units_in(12) == 12
    assert sampling.expected_batch_size(12) == 3
    assert sampling.poisson_rate is None
    assert [condition.name for condition in sampling.on_trust] == ["one record for each user"]
    assert all(not item.owners for item in items_of(sampling, 12, 5))
    with pytest.raises(InvalidArgumentError, match="without users"):
        UserSampling(rate=0.25, users=None, examples_per_user=2)


def test_a_bound_is_declared_and_kept_to_and_the_greatest_number_found_is_none() -> None:
    with pytest.raises(InvalidArgumentError, match="must be declared") as missing:
        UserSampling(rate=0.5, users=IDS)
    assert "without looking at these data" in missing.value.cure
    with pytest.raises(DatasetError, match="some users have more records than the 2 that were declared") as caught:
        scheme(examples_per_user=2)
    assert "bounded_contributions(users, at_most=2)" in caught.value.cure
    assert "Do not declare the greatest number" in caught.value.cure
    assert "3" not in str(caught.value)  # how many the user has that has most is a fact about that user


@pytest.mark.parametrize(
    "more",
    [{"rate": 0}, {"rate": 1.5}, {"gradient": "median"}, {"told_by": "a\nb"}, {"told_by": ""}, {"population": 0},
     {"examples_per_user": 0}, {"users": [1.5] * 8}],
    ids=str,
)  # fmt: skip
def test_arguments_out_of_range_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        scheme(**more)


def test_ids_of_another_data_set_and_items_too_small_for_a_user_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="there are 8 ids, and the data set has 9 records"):
        items_of(scheme(), 9, 1)
    with pytest.raises(InvalidArgumentError, match="a user may have 3 records"):
        items_of(scheme(), 8, 1, max_physical_batch_size=2)


def test_several_processes_would_part_users_and_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="drawn in one process"):
        items_of(scheme(), 8, 1, share=Share(0, 2))


class Parts(UserSampling):
    """Planted: records are drawn one by one, and users clipped: a user takes part with 1 − (1 − q)^k, not with q."""

    def sampler(self, population: int, stream: KeyStream, batches: Batches | None = None) -> Sampler:
        del population, stream, batches

        class Records:
            def one_pass(self, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
                yield from [(0, 2, 6, 7)] * (steps - 1)
                yield (0, 1, 7)

        return Records()


def test_a_sampler_that_draws_a_part_of_a_users_records_is_refused_before_they_are_handed_out() -> None:
    """Guarantee: a draw of a part of them is never handed out."""
    noted = Noted()
    loader = PrivateLoader(
        range(8),
        Parts(rate=0.5, users=IDS, examples_per_user=3),
        steps_per_pass=2,
        stream=KeyStream.fixed_for_tests(1),
        observer=noted,
    )
    with pytest.raises(UnsupportedSamplerError, match="some of a user's records and not all"):
        list(loader)
    assert [item.indices for item in noted.items] == [(0, 2, 6, 7)]


def test_constant_shapes_keep_users_whole_with_padding_behind_them() -> None:
    for item in items_of(scheme(), 8, 6, max_physical_batch_size=5, constant_shapes=True):
        assert item.size == 5
        assert len(item.indices) == len(item.owners) <= 5


def test_a_user_with_more_records_than_an_item_has_rows_is_never_cut() -> None:
    with pytest.raises(InvalidArgumentError, match="more than the 2 records of an item"):
        cut((0, 1, 2), Cutting(2), 0, 0, owners=[4, 4, 4])
