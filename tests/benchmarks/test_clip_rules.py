"""The comparison of clip rules: what is tried, how it is chosen, and its table."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.clip_rules import EFFORTS, GAMMA, Cell, Results, chosen, key_of, table, tried_at_first

from hushgrad import AutomaticClipping, FlatClipping
from hushgrad.study.configuration import Privacy, suggested_run

EFFORT = EFFORTS["digits"]


def test_the_learning_rate_of_sgd_times_c_is_what_is_tried() -> None:
    privacy = Privacy(target_epsilon=3.0, max_grad_norm=1.0)
    settings = suggested_run("digits", privacy=privacy)
    for cell in tried_at_first("flat", EFFORT):
        assert cell.clip_rule == FlatClipping(cell.norm)
        assert cell.settings(settings).learning_rate * cell.norm == pytest.approx(cell.times * settings.learning_rate)
    adam = suggested_run("text", privacy=privacy)
    assert Cell("flat", 0.1, 2.0).settings(adam).learning_rate == adam.learning_rate * 2


def test_automatic_clipping_has_one_gamma_and_no_norm_to_choose_and_the_same_learning_rates() -> None:
    cells = tried_at_first("automatic", EFFORT)
    assert {cell.clip_rule for cell in cells} == {AutomaticClipping(1.0, GAMMA)}
    for norm in EFFORT.norms:
        assert [cell.times for cell in cells] == [
            cell.times for cell in tried_at_first("flat", EFFORT) if cell.norm == norm
        ]


@pytest.mark.parametrize("peak", [1.0, 16.0, 1 / 16])
def test_the_best_learning_rate_lies_between_others_that_were_tried(peak: float) -> None:
    tried = []

    def accuracy(cell: Cell) -> float:
        tried.append(cell)
        return -abs(cell.times / peak - peak / cell.times) - abs(cell.norm - 0.3)

    assert chosen("flat", EFFORT, accuracy) == Cell("flat", 0.3, peak)
    assert len(set(tried)) == len(tried)
    around = {cell.times for cell in tried if cell.norm == 0.3}
    assert {peak / 2, peak, 2 * peak} <= around


def test_runs_are_kept_and_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    results = Results.read(path)
    assert results.filled(results.test, "a", 2, lambda seed: 0.5 + seed / 4) == [0.5, 0.75]
    again = Results.read(path)
    assert again.filled(again.test, "a", 3, lambda seed: float(seed)) == [0.5, 0.75, 2.0]


def test_the_table_compares_what_was_chosen_seed_by_seed_and_says_what_was_not_run(tmp_path: Path) -> None:
    results = Results.read(tmp_path / "none.json")
    effort = EFFORTS["SST-2"]
    for epsilon in (1.0, 3.0):
        for cell in (*tried_at_first("flat", effort), *tried_at_first("automatic", effort)):
            results.validation[key_of("SST-2", epsilon, cell)] = [0.7 + cell.times / 100 + cell.norm / 1000]
    for cell, gain in ((Cell("flat", 3.0, 2.0), 0.0), (Cell("automatic", 1.0, 2.0), 0.02)):
        results.test[key_of("SST-2", 3.0, cell)] = [0.7 + seed / 100 + gain for seed in range(effort.seeds)]
    results.validation[key_of("digits", 1.0, Cell("flat", 1.0, 1.0))] = [0.9] * EFFORT.parts
    assert table(results).splitlines()[2:] == [
        "| SST-2, 1 | 3, × 2 | × 2 | 72.30 | 72.10 | not run yet |  |  |  |",
        "| SST-2, 3 | 3, × 2 | × 2 | 72.30 | 72.10 | 71.00 ± 1.00 | 73.00 ± 1.00 | +2.00 ± 0.00 | 3 |",
    ]
