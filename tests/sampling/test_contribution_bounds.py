"""At most k records of each user, by random choice. Keys are fixed."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hushgrad import UserSampling, bounded_contributions
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import KeyStream


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 2**30))
def test_nobody_keeps_more_than_the_bound_and_nobody_with_fewer_loses_any(
    users: list[int], most: int, key: int
) -> None:
    kept = bounded_contributions(users, at_most=most, key=KeyStream.fixed_for_tests(key))
    assert kept == sorted(set(kept))
    had, has = Counter(users), Counter(users[record] for record in kept)
    assert has == {user: min(count, most) for user, count in had.items()}
    UserSampling(rate=0.5, users=[users[record] for record in kept], examples_per_user=most)


def test_each_choice_of_a_users_records_is_equally_likely_whatever_others_have() -> None:
    """Guarantee: each user keeps a uniformly random `at_most` of their records. False alarm 1e-6 (chi-square)."""
    users = [0, 1, 0, 0, 1, 1, 0, 1, 1, 1]
    own = [record for record, user in enumerate(users) if user == 0]
    counts = dict.fromkeys(combinations(own, 2), 0)
    for key in range(3000):
        kept = bounded_contributions(users, at_most=2, key=KeyStream.fixed_for_tests(key))
        counts[tuple(record for record in kept if users[record] == 0)] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-6


def test_the_choice_is_secret_and_another_one_each_time() -> None:
    users = [0] * 60
    assert bounded_contributions(users, at_most=30) != bounded_contributions(users, at_most=30)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        bounded_contributions([1, 2], at_most=0)
    with pytest.raises(InvalidArgumentError):
        bounded_contributions([1, None], at_most=1)
    with pytest.raises(InvalidArgumentError, match="must be a KeyStream"):
        bounded_contributions([1, 2], at_most=1, key=3)  # type: ignore[arg-type]
