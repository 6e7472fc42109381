"""Reading which rows were chosen: the law passes, and what is not it fails. Keys are fixed; false alarms below 1e-6."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hushgrad.checks.verification.checks.chosen_rows import (
    Rows,
    as_rows,
    read_charge,
    read_counts,
    read_touched,
    read_untouched,
    row_causes,
)

ROWS, STD, THRESHOLD, STEPS, ALPHA = 500, 3.0, 3.0, 120, 1e-6
COUNTS = {3: 1.0, 20: 4.5, 21: 2.0}


def drawn(scale: float = 1.0, counts: dict[int, float] | None = None, seed: int = 0) -> list[Rows]:
    source = np.random.default_rng(seed)
    base = np.zeros(ROWS)
    for row, value in (counts or {}).items():
        base[row] = value
    return [np.flatnonzero(base + scale * STD * source.standard_normal(ROWS) > THRESHOLD) for _ in range(STEPS)]


def test_the_noise_on_counts_is_read_off_untouched_rows() -> None:
    reading = read_untouched(drawn(), rows=ROWS, threshold=THRESHOLD, std=STD, false_alarm=ALPHA)
    assert all(check.passed for check in reading.checks)
    assert abs(reading.std / STD - 1) < reading.reach < 0.05


@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_another_noise_level_is_found_and_measured(scale: float) -> None:
    reading = read_untouched(drawn(scale), rows=ROWS, threshold=THRESHOLD, std=STD, false_alarm=ALPHA)
    often, _ = reading.checks
    assert not often.passed
    assert math.isclose(reading.std, scale * STD, rel_tol=0.03)
    assert [cause.code for cause in row_causes(reading.checks)] == ["untouched-rows-left-out"]


def test_no_row_at_all_and_rows_that_are_none_are_found() -> None:
    none = [as_rows([])] * STEPS
    reading = read_untouched(none, rows=ROWS, threshold=THRESHOLD, std=STD, false_alarm=ALPHA)
    assert not reading.checks[0].passed
    assert math.isnan(reading.std)
    outside = [np.append(step, ROWS) for step in drawn()]
    assert not read_untouched(outside, rows=ROWS, threshold=THRESHOLD, std=STD, false_alarm=ALPHA).checks[0].passed


def test_draws_that_come_again_are_found() -> None:
    again = [step for step in drawn() for _ in (0, 1)]
    reading = read_untouched(again, rows=ROWS, threshold=THRESHOLD, std=STD, false_alarm=ALPHA)
    assert not reading.checks[1].passed


def test_touched_rows_pass_as_often_as_noise_on_their_counts_lets_them() -> None:
    given = {"counts": COUNTS, "threshold": THRESHOLD, "std": STD, "false_alarm": ALPHA}
    assert read_touched(drawn(counts=COUNTS), **given).passed  # type: ignore[arg-type]
    assert not read_touched(drawn(0.0, counts=COUNTS), **given).passed  # type: ignore[arg-type]
    assert not read_touched(drawn(), **{**given, "counts": {3: 9.0}}).passed  # type: ignore[arg-type]


def test_counts_are_those_of_the_reference_where_each_passes_below_itself_and_not_above() -> None:
    assert read_counts({1: (True, False), 5: (True, False)}).passed
    assert not read_counts({1: (True, False), 5: (True, True)}).passed
    assert not read_counts({5: (False, False)}).passed
    assert not read_counts({}).passed


def test_a_charge_of_less_than_both_cost_is_found() -> None:
    given = {"room": 0.03, "sample_size": 9, "false_alarm": ALPHA}
    assert read_charge(charged=1.0, measured=1.01, **given).passed  # type: ignore[arg-type]
    assert not read_charge(charged=1.0, measured=1 / math.sqrt(1.1), **given).passed  # type: ignore[arg-type]
    assert not read_charge(charged=1.0, measured=math.nan, **given).passed  # type: ignore[arg-type]


def test_the_law_of_the_sample_is_the_one_that_is_claimed_here() -> None:
    p = stats.norm.sf(THRESHOLD / STD)
    found = sum(len(step) for step in drawn())
    assert stats.binom.cdf(found, ROWS * STEPS, p) > ALPHA
    assert stats.binom.sf(found - 1, ROWS * STEPS, p) > ALPHA
