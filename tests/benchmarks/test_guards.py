"""The measure of the guards: every guard is found, and its time is a share of a step."""

from __future__ import annotations

import itertools

from benchmarks.guards import GUARDS, Clock, overhead_of, watched
from benchmarks.workloads import SMALL


def test_every_watched_method_exists_and_is_given_back() -> None:
    before = [vars(owner)[name] for owner, name in GUARDS]
    with watched(Clock(), GUARDS):
        assert any(vars(owner)[name] is not kept for (owner, name), kept in zip(GUARDS, before, strict=True))
    assert [vars(owner)[name] for owner, name in GUARDS] == before


def test_a_call_within_a_call_is_counted_once() -> None:
    ticks = itertools.count()
    clock = Clock(lambda: float(next(ticks)))
    inner = clock.around(lambda: None)
    clock.around(inner)()  # begins at 0, the inner one at 1; ends at 2
    assert clock.seconds == 2


def test_shares_and_multiples_are_positive_and_a_guard_is_less_than_its_step() -> None:
    found = overhead_of(SMALL["mlp"], steps=2)
    assert 0 < found.guards < 1
    assert found.attach > 0
    assert found.later_step > 0
    assert found.first_step > 0
    assert found.forwards > 3
