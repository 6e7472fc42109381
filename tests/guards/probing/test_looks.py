"""When the probe looks again: probabilities, secrecy, fairness."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from hushgrad.guards.probing.looks import MOST_OFTEN, Looks, chance, chance_of_missing
from hushgrad.randomness import KeyStream


@pytest.mark.parametrize("steps", [2, 10, 40, 1000, 100_000])
def test_what_begins_in_the_second_half_of_a_run_is_met_with_probability_at_least_0_9(steps: int) -> None:
    assert chance_of_missing(steps // 2 + 1, steps) <= (0.5 if steps == 2 else 0.1)
    if steps >= 40:
        assert chance_of_missing(steps // 2 + 1, steps) <= 0.02


def test_the_number_of_looks_grows_with_the_logarithm_of_the_run() -> None:
    for steps in (100, 10_000):
        assert sum(map(chance, range(1, steps + 1))) == pytest.approx(12 / 2 + 6 * math.log(steps / 12), abs=0.5)


def test_looks_come_with_the_stated_probability_and_differ_by_key() -> None:
    """Guarantee: where nobody knows the session's key, nobody can tell before a batch whether it will be looked at.

    Over 400 keys each of 40 batches is looked at in a share within 5 standard deviations: false alarm below 1e-4. That
    of batches whose predecessor was looked at is the same: what was seen tells nothing of what comes.
    """
    keys = 400
    counts, after, both = [0] * 40, 0, 0
    for key in range(keys):
        looks = Looks(KeyStream.fixed_for_tests(key))
        before = False
        for number in range(40):
            looks.begin()
            counts[number] += looks.wanted
            if 0 < number < 12:  # of equal chances
                after, both = after + before, both + (before and looks.wanted)
            before = looks.wanted
    assert abs(both / after - MOST_OFTEN) < 5 * math.sqrt(MOST_OFTEN * (1 - MOST_OFTEN) / after)
    for number, count in enumerate(counts, start=1):
        expected = chance(number)
        assert abs(count / keys - expected) < 5 * math.sqrt(expected * (1 - expected) / keys)


def test_without_secret_bits_nothing_is_looked_at() -> None:
    looks = Looks(None)
    for _ in range(20):
        looks.begin()
        assert not looks.wanted


def test_each_call_is_as_likely_to_be_kept() -> None:
    """10 calls, 2 places, 3,000 keys: each is kept in 600 ± 5·22."""
    kept: Counter[int] = Counter()
    for key in range(3000):
        looks = Looks(KeyStream.fixed_for_tests(key))
        looks.begin()
        places: dict[int, int] = {}
        for count in range(1, 11):
            place = looks.place(count, 2)
            if place is not None:
                places[place] = count
        assert sorted(places) == [0, 1]
        kept.update(places.values())
    assert all(490 < kept[call] < 710 for call in range(1, 11))


def test_examples_are_drawn_without_repetition() -> None:
    looks = Looks(KeyStream.fixed_for_tests(1))
    looks.begin()
    assert sorted(looks.some(7, 9)) == list(range(7))
    assert len(set(looks.some(7, 3))) == 3


def test_looks_with_equal_bits_are_at_the_same_batches() -> None:
    """So a sharded model is put together for all processes at once."""
    shared = KeyStream.fixed_for_tests(5).fork("looks")
    found = []
    for own in (1, 2):
        looks = Looks(KeyStream.fixed_for_tests(own))
        looks.draw_from(shared)
        wanted = []
        for _ in range(60):
            looks.begin()
            wanted.append(looks.wanted)
        found.append(wanted)
    assert found[0] == found[1]
    assert 0 < sum(found[0]) < 60
