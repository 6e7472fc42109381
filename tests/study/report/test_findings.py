"""A run whose ledger holds a finding: reports, cards and sweeps say infinity and why, also beside an older summary."""

from __future__ import annotations

import json
import math
from pathlib import Path

from click.testing import CliRunner

from hushgrad.accounting.events.not_established import NotEstablished
from hushgrad.accounting.guarantee import guarantee
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.cli.main import main
from hushgrad.study.directory import ledger_end
from hushgrad.study.report.run_facts import run_facts
from hushgrad.study.report.sweep_facts import sweep_facts

FOUND = NotEstablished(code="DP301", place="0.weight", what="the output of one example depends on the others")


def end(ledger: Path) -> None:
    """Leave a finding in the ledger, as the session of the run would have."""
    with Ledger(ledger, contract=read_ledger(ledger).contract) as account:
        account.end(FOUND)


def test_a_report_says_infinity_and_what_was_found(run_folder: Path) -> None:
    end(run_folder / "ledger.jsonl")
    facts = run_facts(run_folder)
    assert facts["privacy"]["epsilon"] == "inf"
    assert not facts["privacy"]["private"]
    broken = [row for row in facts["assumptions"] if row["status"] == "did not hold"]
    assert any("DP301 0.weight" in row["evidence"] for row in broken)
    made = CliRunner().invoke(main, ["report", str(run_folder)])
    assert made.exit_code == 1  # its summary states a finite ε
    assert "not established: DP301 0.weight" in made.output
    assert "ε = ∞" in (run_folder / "model-card.md").read_text()
    checked = CliRunner().invoke(main, ["report", str(run_folder), "--check"])
    assert "WRONG" in checked.output
    assert checked.exit_code == 1


def test_with_a_summary_that_knows_of_it_nothing_contradicts_it(run_folder: Path) -> None:
    end(run_folder / "ledger.jsonl")
    ledger = read_ledger(run_folder / "ledger.jsonl")
    summary = json.loads((run_folder / "summary.json").read_text())
    held = guarantee(ledger.events, summary["delta"], contract=ledger.contract, conditions=ledger.conditions)
    summary |= {"epsilon": "inf", "private": False, "guarantee": str(held), "ledger": ledger_end(ledger.anchor)}
    (run_folder / "summary.json").write_text(json.dumps(summary))
    rows = {row["what"]: row["held"] for row in run_facts(run_folder)["agreement"]}
    assert rows["whether the ε of summary.json is established"]
    assert rows["ε in summary.json and from its ledger"]
    assert rows["the statement in summary.json and from the ledger"]


def test_a_sweep_with_it_has_no_total(sweep_folder: Path) -> None:
    before = sweep_facts(sweep_folder)["choosing"]["all_private_attempts"]
    assert 0 < before < math.inf
    [run] = [
        path for path in sweep_folder.rglob("ledger.jsonl")
        if any(event.noise_multiplier > 0 for event, _ in read_ledger(path).events)
    ]  # fmt: skip
    end(run)
    facts = sweep_facts(sweep_folder)
    assert facts["choosing"]["all_private_attempts"] == "inf"
    assert facts["choosing"]["noiseless_attempts"] == 1
