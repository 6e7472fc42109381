"""Scores of training records against others: area, hits at few false alarms, and what ε allows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hushgrad.accounting import Gaussian
from hushgrad.accounting.risk import membership_advantage, true_positive_rate
from hushgrad.checks.auditing.membership import membership_report
from hushgrad.errors import InvalidArgumentError


def test_the_area_is_the_share_of_pairs_that_are_in_order() -> None:
    one, other = np.array([3.0, 1.0, 2.0, 2.0]), np.array([2.0, 0.0, 1.0])
    pairs = [(a > b) + 0.5 * (a == b) for a in one for b in other]
    assert membership_report(one, other).area.estimate == pytest.approx(float(np.mean(pairs)))


@pytest.mark.statistical
def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Fixed seeds. 400 experiments at 0.9: fewer than 335 coverages of either have probability 1e-4."""
    source = np.random.default_rng(1)
    area, hits = 0, 0
    exact = float(stats.norm.cdf(1 / math.sqrt(2)))
    for _ in range(400):
        one, other = source.normal(1, 1, 150), source.normal(0, 1, 4000)
        report = membership_report(one, other, confidence=0.9, false_positive_rates=[0.1])
        area += report.area.low <= exact <= report.area.high
        rate = report.hit_rates[0].true_positive_rate
        hits += rate.low <= stats.norm.sf(stats.norm.isf(0.1) - 1) <= rate.high
    assert area >= 335
    assert hits >= 335


@pytest.mark.statistical
@pytest.mark.parametrize("others", [20, 120, 1000])
def test_a_blind_score_is_not_shown_to_find_more_than_it_does(others: int) -> None:
    """Fixed seeds. 300 experiments at 0.95, three rates: more than 33 intervals that miss have probability 1e-4 each.

    The largest of 120 scores is exceeded by 0.8% of all others on average, and not by 0.1%.
    """
    source = np.random.default_rng(2)
    missed = np.zeros(3)
    for _ in range(300):
        report = membership_report(source.normal(0, 1, 5000), source.normal(0, 1, others))
        found = [(rate.false_positive_rate, rate.true_positive_rate) for rate in report.hit_rates]
        missed += [not part.low <= rate <= part.high for rate, part in found]
        assert all(part.low <= part.estimate <= part.high for _, part in found)
    assert missed.max() <= 33


def test_intervals_hold_for_scores_with_ties() -> None:
    """Half of all scores are one value: no threshold has a tenth above it, and what is said of one holds."""
    one, other = np.repeat([0.0, 1.0], 500), np.repeat([0.0, 1.0], 300)
    rate = membership_report(one, other, false_positive_rates=[0.1]).hit_rates[0].true_positive_rate
    assert rate.low <= 0.1 <= rate.high


def test_no_more_than_the_share_of_others_lies_above_the_threshold() -> None:
    one, other = np.arange(1000.0) + 0.5, np.arange(1000.0)
    for rate in membership_report(one, other).hit_rates:
        found = rate.true_positive_rate.estimate * 1000
        assert abs(found - rate.false_positive_rate * 1000) <= 1


def test_what_epsilon_allows_is_that_of_every_attack() -> None:
    charged = [(Gaussian(1.0), 1)]
    report = membership_report(np.arange(9.0), np.arange(9.0), charged=charged)
    assert report.allowed_area == (1 + membership_advantage(charged)) / 2
    for rate in report.hit_rates:
        assert rate.allowed == pytest.approx(true_positive_rate(charged, rate.false_positive_rate), rel=1e-5)
    assert "epsilon allows" in str(report)


def test_scores_that_tell_all_or_nothing_have_intervals() -> None:
    apart = membership_report(np.ones(5), np.zeros(5))
    assert (apart.area.estimate, apart.area.low, apart.area.high) == (1.0, 0.0, 1.0)
    assert membership_report(np.ones(5), np.ones(5)).area.estimate == 0.5


@pytest.mark.parametrize("wrong", [[1.0], [1.0, math.nan], [math.inf, 1.0]])
def test_other_scores_are_refused(wrong: list[float]) -> None:
    with pytest.raises(InvalidArgumentError):
        membership_report(np.array(wrong), np.arange(4.0))
