"""The pieces of `python -m benchmarks.sparse_rows`."""

from __future__ import annotations

from dataclasses import replace

import benchmarks.sparse_rows as bench
import pytest
import torch
from benchmarks.sparse_rows import Setting, area_under_curve, made_up, mechanism_of, step_of, trained


def test_the_area_under_the_curve_is_the_share_of_pairs_in_the_right_order() -> None:
    scores, clicks = torch.tensor([0.1, 0.4, 0.4, 0.9, 0.2]), torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])
    pairs = [(float(a), float(b)) for a in scores[clicks > 0] for b in scores[clicks == 0]]
    wanted = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert area_under_curve(scores, clicks) == pytest.approx(wanted)


def test_the_task_is_the_same_for_one_seed_and_its_parts_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TRAIN", 400)
    monkeypatch.setattr(bench, "HELD_OUT", 50)
    one, two = made_up(), made_up()
    assert torch.equal(one.test[0], two.test[0]) and torch.equal(one.train[1], two.train[1])  # noqa: PT018
    assert [len(part[1]) for part in (one.train, one.validation, one.test)] == [400, 50, 50]


def test_both_private_methods_are_charged_alike() -> None:
    dense, chosen = Setting(3.0, None, 1.0), Setting(3.0, 8.0, 1.0)
    assert mechanism_of(dense).event() == mechanism_of(chosen).event()
    assert mechanism_of(chosen).epsilon(bench.DELTA) <= 3.0
    assert mechanism_of(dense) == replace(mechanism_of(chosen), sparse_rows=None)


def test_a_run_of_each_method_trains_and_counts_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TRAIN": 400, "HELD_OUT": 50, "BATCH": 100, "PASSES": 1, "USERS": 200, "ITEMS": 100}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench.Clicks.__init__, "__defaults__", (200, 100, 8))
    data = made_up()
    whole, chosen = (trained(Setting(3.0, threshold, 1.0), data, 0) for threshold in (None, 12.0))
    assert whole.rows == 300
    assert 0 < chosen.rows < 300
    assert all(0 <= outcome.test <= 1 for outcome in (whole, chosen))


def test_a_step_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STEPS", 5)
    monkeypatch.setattr(bench, "WARM", 3)
    found = step_of(3000, "chosen rows")
    assert found.updated_rows < 3000
    assert found.seconds > 0
    assert step_of(3000, "noise on whole tables").updated_rows == 3000
