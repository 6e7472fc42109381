"""A diagnosis as people read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from patients import Patient, ids
from torch import nn

from hushgrad import doctor
from hushgrad.checks.doctor.findings import Diagnosis, Finding, Use
from hushgrad.checks.doctor.report import report


@pytest.mark.parametrize("width", [80, 140])
def test_the_report_fits_the_screen(width: int) -> None:
    """No line is longer than the screen, and every operator and problem is in it."""
    with_problem = nn.Sequential(Patient(), nn.BatchNorm1d(11))
    text = doctor(with_problem, ids()).text(width)
    assert all(len(line) <= width for line in text.splitlines())
    for word in ("embedding", "linear", "BatchNorm1d", "make_private_ready", "Not ready: 1 problem"):
        assert word in text
    assert ("kept" in text) == (width == 140)


def diagnosis(**changes: Any) -> Diagnosis:
    empty = Diagnosis(
        "Net", None, (), (), (), parameters=1234, budget_bytes=1 << 20, machine="as shipped", norm_groups={}
    )
    return replace(empty, **changes)


def use(module: str, extra: int = 0, calls: int = 1) -> Use:
    return Use(
        module, "linear", (f"{module}.weight",), "gram", calls, 4, 6, 8, 10, 1000, 1000 + extra, memory_bytes=2048
    )


def test_equal_uses_of_repeated_layers_are_one_row_with_their_calls_and_share_together() -> None:
    text = report(diagnosis(batch_size=4, uses=tuple(use(f"layer.{i}") for i in range(4))), 140)
    (row,) = [line for line in text.splitlines() if "linear" in line]
    assert "layer.{0…3}.weight" in row
    assert " 4 " in row
    assert "100%" in row


def test_what_costs_more_than_a_tenth_of_a_step_has_a_mark() -> None:
    for extra, marked in ((50, False), (150, True)):
        text = report(diagnosis(batch_size=4, uses=(use("layer", extra),)), 80)
        (row,) = [line for line in text.splitlines() if "linear" in line]
        assert ("! +" in row) is marked


def test_what_becomes_of_the_sums_of_a_sharded_model_is_said() -> None:
    """Of a model that is not sharded only where it is large: nobody else has to know."""
    assert "fully_shard" not in report(diagnosis(sum_bytes=1 << 20, sum_budget_bytes=1 << 20), 200)
    whole = report(diagnosis(sum_bytes=1 << 20, sum_budget_bytes=1 << 20, is_sharded=True), 200)
    assert "its clipped sums stay whole in each process until the end of a logical batch" in whole
    scattered = diagnosis(sum_bytes=1 << 21, sum_budget_bytes=1 << 20)
    assert "2.0 MiB whole, are above the budget of 1.0 MiB" in report(scattered, 200)
    assert scattered.as_json()["sums_scattered"] is True


def test_what_becomes_of_the_operands_is_said_where_there_is_a_budget_for_them() -> None:
    assert "operand_bytes" not in report(diagnosis(batch_size=4, operand_bytes=1 << 21), 200)
    kept = diagnosis(batch_size=4, operand_bytes=1 << 20, operand_budget_bytes=1 << 20)
    assert "are within the budget of 1.0 MiB (operand_bytes): they are kept" in report(kept, 200)
    assert kept.as_json()["operands_let_go"] is False
    let_go = diagnosis(batch_size=4, operand_bytes=1 << 21, operand_budget_bytes=1 << 20)
    assert "2.0 MiB at most, are above the budget of 1.0 MiB" in report(let_go, 200)
    assert "a scalar loss of the loop's own keeps them all" in " ".join(report(let_go, 200).split())
    assert let_go.as_json()["operands_let_go"] is True


def test_equal_findings_are_one_paragraph_with_all_their_places_and_one_cure() -> None:
    problems = tuple(Finding("DP301", f"norm.{i}", "mixes examples", "Put a GroupNorm there") for i in (1, 2, 5))
    text = report(diagnosis(problems=(*problems, Finding("DP307", "lookup", "is sparse"))), 100)
    assert text.count("DP301") == 1
    assert text.count("→") == 1
    assert "norm.{1,2,5}: mixes examples" in text
    assert "Not ready: 4 problems" in text


def test_the_verdict_tells_a_model_that_was_run_from_one_that_was_only_read() -> None:
    assert report(diagnosis(batch_size=4), 80).endswith("Ready to be made private.")
    assert "Give a batch" in report(diagnosis(), 80)
    assert "1,234 trainable values, not run" in report(diagnosis(), 80)


def test_names_of_the_users_cannot_write_to_a_terminal() -> None:
    assert "\x1b" not in report(diagnosis(model="\x1b[2J", notes=(Finding("", "\x1b[1m", "\x1b[3m"),)), 80)
