"""p-values are probabilities under the hypothesis, also far out, and repeated runs of words are found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hushgrad.checks.verification.checks import statistics as st


def test_p_values_are_those_of_the_exact_distributions() -> None:
    assert st.variance_p(stats.chi2.ppf(0.975, 50), 50) == pytest.approx(0.05)
    assert st.mean_p(1.959964 * 10, 100) == pytest.approx(0.05, rel=1e-5)
    assert st.count_p(5, 10, 0.5) == 1.0
    assert st.count_p(0, 10, 0.5) == pytest.approx(2 * 0.5**10)
    r = stats.pearsonr(np.arange(8.0) - 3.5, [1, -1, 2, 0, 1, 3, -2, 1]).statistic
    assert 0 < st.correlation_p(float(r), 8) < 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_has_probability_0(value: float) -> None:
    assert st.variance_p(value, 9) == st.mean_p(value, 9) == st.correlation_p(value, 9) == 0.0


def test_a_repeated_run_is_found_wherever_it_begins_and_no_other() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, 1000, dtype=np.uint64)
    assert st.repeated_windows(words) == 0
    assert st.repeated_windows(np.concatenate([words, words[333:345]])) == 12 - 4 + 1
    assert st.repeated_windows(words[:4]) == 0


def test_sample_sizes_and_smallest_errors_are_inverse_to_each_other() -> None:
    count = st.values_needed_for_std(0.01, 1e-6)
    assert st.smallest_std_error(count, 1e-6) == pytest.approx(0.01, rel=1e-4)
    trials = st.trials_needed_for_rate(0.02, 0.1, 1e-6)
    assert st.smallest_rate_error(trials, 0.1, 1e-6) == pytest.approx(0.02, rel=1e-4)
