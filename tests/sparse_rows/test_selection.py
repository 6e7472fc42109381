"""Rows chosen without the noise of untouched ones: the law is that of noise on the counts of all rows.

All keys are fixed. The tests of the law together raise a false alarm with a probability below 1e-5.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from hushgrad import SparseRows
from hushgrad.noise.gaussian import standard_normal
from hushgrad.randomness import Address, KeyStream
from hushgrad.sparse_rows.counts import Counts
from hushgrad.sparse_rows.rule import ALL_ROWS
from hushgrad.sparse_rows.selection import RowSelection

ROWS, STEPS, SIGMA = 60, 3000, 1.0
RULE = SparseRows(tables=("t",), threshold=3.0, count_share=0.25, rows_per_record=1)  # noise of 2 records
COUNTS = Counts(torch.tensor([4, 5, 41]), torch.tensor([1.0, 4.5, 0.5], dtype=torch.float64))
FALSE_ALARM = 1e-6


def dense_counts() -> Tensor:
    return torch.zeros(ROWS, dtype=torch.float64).index_add_(0, COUNTS.numbers, COUNTS.values)


def chosen_in(steps: int, seed: int) -> np.ndarray:
    """Return which rows were chosen in which step, `[steps, rows]`."""
    selection = RowSelection(RULE, ROWS, KeyStream.fixed_for_tests(seed))
    found = np.zeros((steps, ROWS), dtype=bool)
    for step in range(steps):
        rows = selection.choose(COUNTS, SIGMA, step)
        assert rows.tolist() == sorted(set(rows.tolist()))
        found[step, rows.numpy()] = True
    return found


def chosen_with_noise_on_all_rows(steps: int, seed: int) -> np.ndarray:
    stream = KeyStream.fixed_for_tests(seed)
    std, counts = RULE.count_std(SIGMA), dense_counts()
    found = [
        counts + std * standard_normal((ROWS,), dtype=torch.float64, device="cpu", stream=stream, address=Address(step))
        for step in range(steps)
    ]
    return (torch.stack(found) > RULE.threshold).numpy()


@pytest.fixture(scope="module")
def chosen() -> np.ndarray:
    return chosen_in(STEPS, 3)


def test_rows_are_chosen_with_the_same_law_as_by_independent_gaussian_noise_on_the_counts_of_all_rows(
    chosen: np.ndarray,
) -> None:
    """Rows are chosen with the same law as by independent Gaussian noise on the counts of all rows."""
    wanted = stats.norm.sf((RULE.threshold - dense_counts().numpy()) / RULE.count_std(SIGMA))
    often = chosen.sum(0)
    statistic = float(((often - STEPS * wanted) ** 2 / (STEPS * wanted * (1 - wanted))).sum())
    assert FALSE_ALARM / 2 < stats.chi2.sf(statistic, ROWS) < 1 - FALSE_ALARM / 2


def test_so_many_untouched_rows_pass_as_independent_noise_lets_through(chosen: np.ndarray) -> None:
    untouched = dense_counts().numpy() == 0
    sizes = chosen[:, untouched].sum(1)
    law = stats.binom(int(untouched.sum()), float(stats.norm.sf(1.5)))
    edges = [law.ppf(part) for part in np.linspace(0.1, 0.9, 9)]
    edges = sorted(set(edges))
    probabilities = np.diff([0, *law.cdf(edges), 1])
    observed = np.bincount(np.searchsorted(edges, sizes), minlength=len(probabilities))
    statistic, p = stats.chisquare(observed, STEPS * probabilities)
    assert p > FALSE_ALARM, statistic


def test_rows_pass_independently_of_each_other_and_of_other_steps(chosen: np.ndarray) -> None:
    """Pairs of rows, and each row with itself a step later, are correlated no more than independent ones."""
    centred = chosen - chosen.mean(0)
    unit = centred / np.sqrt((centred**2).sum(0))
    pairs = (unit.T @ unit)[np.triu_indices(ROWS, 1)] * math.sqrt(STEPS)
    later = (centred[1:] * centred[:-1]).sum(0) / (centred**2).sum(0) * math.sqrt(STEPS)
    for scores in (pairs, later):
        limit = stats.norm.isf(FALSE_ALARM / 2 / len(scores))
        assert np.abs(scores).max() < limit


def test_noise_drawn_on_all_rows_gives_the_same_table_of_frequencies(chosen: np.ndarray) -> None:
    """Two samples, one with noise on all rows: chosen or not, by row."""
    other = chosen_with_noise_on_all_rows(STEPS, 4)
    together = (chosen.mean(0) + other.mean(0)) / 2
    off = chosen.mean(0) - other.mean(0)
    statistic = float((off**2 / (2 * together * (1 - together) / STEPS)).sum())
    assert FALSE_ALARM / 2 < stats.chi2.sf(statistic, ROWS) < 1 - FALSE_ALARM / 2


def test_without_noise_a_count_above_the_threshold_passes_and_no_other() -> None:
    selection = RowSelection(RULE, ROWS, KeyStream.fixed_for_tests(1))
    assert selection.choose(COUNTS, 0.0, 0).tolist() == [5]
    assert selection.choose(Counts.none(), 0.0, 1).tolist() == []


def test_every_row_passes_a_threshold_below_all_numbers() -> None:
    rule = SparseRows(tables=("t",), threshold=ALL_ROWS)
    selection = RowSelection(rule, ROWS, KeyStream.fixed_for_tests(1))
    for step, counts in enumerate((COUNTS, Counts.none())):
        assert selection.choose(counts, SIGMA, step).tolist() == list(range(ROWS))


def test_no_noise_is_drawn_twice_and_another_noise_level_has_another_law() -> None:
    selection = RowSelection(RULE, 10_000, KeyStream.fixed_for_tests(5))
    one, two = (set(selection.choose(Counts.none(), SIGMA, step).tolist()) for step in (0, 1))
    assert one != two
    few = len(selection.choose(Counts.none(), SIGMA / 2, 2))  # the threshold lies at 3 standard deviations now
    assert few < 60 < len(one)  # 13.5 ± 3.7 and 668 ± 25 expected


def test_what_it_takes_follows_the_rows_that_pass_and_not_the_rows_there_are() -> None:
    """A table of a billion rows: nothing of its size could be made here in any reasonable time."""
    rule = SparseRows(tables=("t",), threshold=6.1, count_share=0.999999)
    selection = RowSelection(rule, 10**9, KeyStream.fixed_for_tests(6))
    found = selection.choose(Counts.none(), 1.0, 0)
    assert len(found) < 20  # 0.53 expected
    assert bool((found < 10**9).all())
