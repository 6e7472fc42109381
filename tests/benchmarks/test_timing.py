"""The harness's arithmetic: orders, intervals and ratios. Nothing here depends on how fast anything is."""

import gc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from benchmarks.runner import Runner
from benchmarks.timing import FEWEST_ROUNDS, Timings, balanced_orders, interleave, median_interval
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("count", range(1, 8))
def test_every_contestant_comes_equally_often_at_each_place_and_after_each_other_one(count):
    orders = balanced_orders(count)
    assert all(sorted(order) == list(range(count)) for order in orders)
    places = Counter((place, item) for order in orders for place, item in enumerate(order))
    followers = Counter(pair for order in orders for pair in pairwise(order))
    assert len(places) == count * count
    assert len(set(places.values())) == 1
    assert len(followers) == count * (count - 1)
    assert len(set(followers.values())) <= 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=FEWEST_ROUNDS, max_size=200))
def test_the_interval_holds_the_sample_median_and_states_at_least_the_coverage_asked_for(values):
    found = median_interval(values, 0.95)
    assert found.low <= found.median <= found.high
    assert found.median == pytest.approx(np.median(values), abs=1e-9)
    assert found.coverage >= 0.95


def test_known_ranks_of_the_interval():
    # n = 60: ranks 22 and 39 enclose the median with 97.3%, 23 and 38 with 94.8% (binomial tables): 22 and 39.
    found = median_interval([float(value) for value in range(1, 61)], 0.95)
    assert (found.low, found.high) == (22.0, 39.0)
    smallest = median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.95)
    assert (smallest.low, smallest.high) == (1.0, 6.0)
    assert smallest.coverage == pytest.approx(1 - 2 / 2**6)


def test_too_few_values_have_no_interval():
    with pytest.raises(ValueError, match="too few"):
        median_interval([1.0] * (FEWEST_ROUNDS - 1), 0.95)


@pytest.mark.statistical
def test_the_interval_encloses_the_true_median_as_often_as_it_states():
    # Exponential values, true median log 2. Coverage 0.957 for n = 25; below 0.93 of 2000 has probability < 1e-7.
    generator = np.random.default_rng(5)
    intervals = [median_interval(list(generator.exponential(size=25))) for _ in range(2000)]
    assert np.mean([found.low <= np.log(2) <= found.high for found in intervals]) > 0.93


@settings(max_examples=25)
@given(st.lists(st.floats(0.1, 10), min_size=6, max_size=40), st.floats(1, 3))
def test_ratios_are_paired_so_a_drift_of_the_machine_cancels(drift, ratio):
    timings = Timings({"slow": tuple(ratio * value for value in drift), "fast": tuple(drift)})
    found = timings.ratio("slow", "fast")
    assert found.low == pytest.approx(ratio)
    assert found.high == pytest.approx(ratio)


def test_differences_are_paired_and_in_milliseconds():
    timings = Timings(
        {"slow": tuple(t + 0.002 for t in (1.0, 5.0, 2.0, 9.0, 4.0, 7.0)), "fast": (1.0, 5.0, 2.0, 9.0, 4.0, 7.0)}
    )
    found = timings.beyond_ms("slow", "fast")
    assert (found.low, found.high) == (pytest.approx(2.0), pytest.approx(2.0))


def test_interleaving_steps_every_contestant_in_every_round_on_a_batch_prepared_for_that_step():
    log = []
    runners = {name: _logging(name, log) for name in "abc"}
    timings = interleave(runners, rounds=7, warm_up=2)
    assert {name: len(values) for name, values in timings.seconds.items()} == {"a": 7, "b": 7, "c": 7}
    assert all(log[i] == f"prepare {log[i + 1][-1]}" for i in range(0, len(log), 2))
    steps = [entry[-1] for entry in log[1::2]]
    assert len(steps) == 9 * 3
    assert all(sorted(steps[i : i + 3]) == ["a", "b", "c"] for i in range(0, len(steps), 3))
    assert all(value > 0 for values in timings.seconds.values() for value in values)


def test_when_the_time_is_over_only_the_fewest_rounds_are_recorded():
    log = []
    late = interleave({name: _logging(name, log) for name in "ab"}, rounds=30, warm_up=1, until=0.0)
    assert {name: len(values) for name, values in late.seconds.items()} == {"a": FEWEST_ROUNDS, "b": FEWEST_ROUNDS}
    late.ratio("a", "b")  # enough for an interval
    in_time = interleave({"a": _logging("a", log)}, rounds=30, warm_up=1, until=float("inf"))
    assert len(in_time.seconds["a"]) == 30


def test_the_garbage_collector_is_off_inside_a_step_and_on_again_afterwards_also_after_an_error():
    seen = []

    def fail(batch):
        seen.append(gc.isenabled())
        raise ValueError("on purpose")

    nothing = (torch.empty(0), torch.empty(0))
    with pytest.raises(ValueError, match="on purpose"):
        interleave({"a": Runner(lambda: nothing, fail, ())}, rounds=1, warm_up=0)
    assert seen == [False]
    assert gc.isenabled()


def _logging(name, log):
    nothing = (torch.empty(0), torch.empty(0))

    def prepare():
        log.append(f"prepare {name}")
        return nothing

    return Runner(prepare, lambda batch: log.append(f"step {name}"), ())
