"""The comparison of clip rules: what its runs are, and its table."""

from __future__ import annotations

import pytest
from benchmarks.clip_rules import RULES, key_of, table, with_rule

from hushgrad.study.configuration import Privacy, suggested_run


@pytest.mark.parametrize("name", RULES)
def test_the_learning_rate_of_sgd_times_c_is_kept(name: str) -> None:
    rule, norm, times = RULES[name]
    settings = suggested_run("digits", privacy=Privacy(target_epsilon=3.0, max_grad_norm=1.0))
    found = with_rule(settings, rule, norm, times)
    assert found.privacy is not None
    assert (found.privacy.clipping, found.privacy.max_grad_norm) == (rule, norm)
    assert found.learning_rate * norm == pytest.approx(times * settings.learning_rate)
    adam = with_rule(suggested_run("text", privacy=settings.privacy), rule, norm, times)
    assert adam.learning_rate == suggested_run("text", privacy=None).learning_rate * times


def test_the_table_compares_the_better_rate_with_the_best_norm() -> None:
    results = {key_of("digits", 1.0, name): [0.8, 0.9] for name in RULES}
    results[key_of("digits", 1.0, "flat, C = 10")] = [0.86]
    results[key_of("digits", 1.0, "automatic, twice the rate")] = [0.88]
    results[key_of("digits", 3.0, "flat, C = 10")] = [0.86]  # the others are missing
    head, _, *rows = table(results).splitlines()
    assert "| automatic, γ = 0.01 |" in head
    assert len(rows) == 1
    assert rows[0].startswith("| digits | 1 | 85.0 ± 7.1 |")
    assert rows[0].endswith("| +2.0 | 1 |")
