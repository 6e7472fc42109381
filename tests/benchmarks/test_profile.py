"""Spans add up, and the phases of a step are found."""

from dataclasses import replace

import pytest
from benchmarks.profile import NOISE, PHASES, SUMS, Stopwatch, callers_of, profile
from benchmarks.workloads import WORKLOADS

from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.noise.gaussian import noisy_updates


def clock(*ticks):
    return iter(ticks).__next__


def test_time_in_an_inner_span_counts_for_the_inner_one_only():
    watch = Stopwatch(clock(0.0, 1.0, 4.0, 9.0))
    with watch.span("outer"), watch.span("inner"):
        pass
    assert watch.take() == {"outer": 1.0 + 5.0, "inner": 3.0}
    assert watch.take() == {}


def test_spans_of_one_name_add_up_and_time_between_spans_counts_for_none():
    watch = Stopwatch(clock(0.0, 1.0, 10.0, 12.0))
    timed = watch.wrapped("work", lambda value: value + 1)
    assert timed(1) == 2
    assert timed(2) == 3
    assert watch.take() == {"work": 1.0 + 2.0}


def test_a_span_ends_when_its_block_raises():
    watch = Stopwatch(clock(0.0, 1.0, 5.0, 7.0))
    with pytest.raises(ValueError, match="on purpose"), watch.span("broken"):
        raise ValueError("on purpose")
    with watch.span("next"):
        pass
    assert watch.take() == {"broken": 1.0, "next": 2.0}


def test_the_sums_and_the_noise_are_found_where_a_step_calls_them():
    assert callers_of(clipped_sums)
    assert callers_of(noisy_updates)


def test_a_function_that_no_module_calls_is_an_error_and_not_a_phase_without_time():
    with pytest.raises(LookupError, match="no_module_calls_this"):
        callers_of(no_module_calls_this)


def no_module_calls_this():
    return None


def test_a_profile_has_time_in_every_phase_of_a_private_step():
    found = profile(replace(WORKLOADS["cnn"], batch_size=2), rounds=2, warm_up=1)
    assert tuple(found.phases_ms) == PHASES
    assert all(row["hushgrad"] > 0 for row in found.phases_ms.values())
    assert found.phases_ms[SUMS]["ordinary"] == 0
    assert found.phases_ms[NOISE]["ordinary"] == 0
    assert found.operators_ms
    assert set(found.resources) == {"processor time, ms", "page faults"}
