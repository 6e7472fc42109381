"""One account for many attempts: several runs on the same data in one ledger."""

import json
import math
from dataclasses import replace

import pytest
from click.testing import CliRunner

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.events.not_established import NotEstablished
from hushgrad.accounting.ledger.contract import OBSERVED, OPERATING_SYSTEM, Contract
from hushgrad.accounting.ledger.file import LedgerFile
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.cli.main import main
from hushgrad.errors import (
    AccountingError,
    BudgetExhaustedError,
    ContractChangedError,
    DatasetError,
    InvalidArgumentError,
    LedgerError,
    NotEstablishedError,
)
from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.directory import RunDirectory
from hushgrad.study.occupied import require_no_run
from hushgrad.study.report.agreement import agreement, notices
from hushgrad.study.report.run_files import RunFiles
from hushgrad.study.resuming import resume
from hushgrad.study.run import Reporter, run
from hushgrad.study.status import beside, status_of
from hushgrad.study.tasks import TaskOptions

DELTA = 1e-5


def config(batch_size=100, class_weights=None, class_weights_epsilon=None, **privacy):
    how = Privacy(**{"max_grad_norm": 1.0, **(privacy or {"target_epsilon": 2.0})})
    suggested = suggested_run("digits", privacy=how, options=TaskOptions(classes=("0", "1")))
    weights = {"class_weights": class_weights, "class_weights_epsilon": class_weights_epsilon}
    return replace(suggested, batch_size=batch_size, epochs=1, **weights)


class PowerCutError(BaseException):
    """Ends a run without a word."""


def stopped(ledger, out, target_epsilon):
    def cut(step):
        if step == 1:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        run(config(target_epsilon=target_epsilon), out, Reporter(on_step=cut), shared_ledger=ledger)
    return out


@pytest.fixture
def shared(tmp_path):
    """A ledger in which a run, first/, has spent ε = 2."""
    ledger = tmp_path / "account.jsonl"
    run(config(), tmp_path / "first", shared_ledger=ledger)
    return ledger


def refused(ledger, error, match, settings):
    """Guarantee: a run that cannot go on with a shared ledger is refused before anything is charged."""
    out, before = ledger.parent / "refused", ledger.read_bytes()
    with pytest.raises(error, match=match) as caught:
        run(settings, out, shared_ledger=ledger)
    assert ledger.read_bytes() == before
    assert not out.exists()
    assert caught.value.cure
    return caught.value


def test_the_epsilon_of_a_run_in_a_shared_ledger_is_that_of_the_whole_account(shared, tmp_path):
    """Guarantee: in a shared ledger it is that of all runs in the account so far."""
    second = run(config(batch_size=60, target_epsilon=3.0), tmp_path / "second", shared_ledger=shared)
    view, summary = read_ledger(shared), second.summary
    assert [phase.begins for phase in view.phases] == [0, 3]
    assert (summary["steps"], summary["lost_steps"], view.steps) == (5, 0, 8)
    assert summary["epsilon"] == epsilon(view.events, DELTA) <= 3.0
    assert summary["epsilon"] > 2.99
    assert "after 8 steps" in summary["guarantee"]
    assert not (tmp_path / "second" / "ledger.jsonl").exists()
    for name, others in (("first", 5), ("second", 3)):
        files = RunFiles.read(tmp_path / name)
        rows = agreement(files, DELTA)
        assert [row.what for row in rows if not row.held] == []
        assert f"{others} of its 8 steps are theirs" in notices(files)[0]


def test_a_report_finds_a_shared_ledger_that_was_exchanged_or_a_part_that_is_another_runs(shared, tmp_path):
    run(config(batch_size=60, target_epsilon=3.0), tmp_path / "second", shared_ledger=shared)
    own, other = (json.loads((tmp_path / name / "account.json").read_text()) for name in ("second", "first"))
    (tmp_path / "second" / "account.json").write_text(json.dumps({**own, "phase": other["phase"]}))
    assert not all(row.held for row in agreement(RunFiles.read(tmp_path / "second"), DELTA))
    (tmp_path / "second" / "account.json").unlink()
    assert not all(row.held for row in agreement(RunFiles.read(tmp_path / "second"), DELTA))


def test_the_account_is_counted_once_in_the_status_of_a_folder(shared, tmp_path):
    run(config(batch_size=60, target_epsilon=3.0), tmp_path / "second", shared_ledger=shared)
    (data,) = status_of(tmp_path, DELTA)
    assert [(one.place, one.steps, one.shared) for one in data.runs] == [("first", 3, True), ("second", 5, True)]
    assert data.ledgers == 1
    assert data.private == epsilon(read_ledger(shared).events, DELTA)
    assert data.runs[0].epsilon == pytest.approx(2.0, abs=0.01)
    assert data.runs[1].epsilon < data.private
    assert beside(tmp_path / "second", DELTA).private == data.private
    shown = CliRunner().invoke(main, ["status", str(tmp_path)]).output
    assert "ε of 1 ledger (runs in a shared ledger: 2): 3 at δ = 1e-05" in shown


def test_a_folder_that_holds_a_shared_run_is_refused_with_what_the_account_has_spent(shared):
    with pytest.raises(InvalidArgumentError, match=r"spent ε = 2 at δ = 1e-05 with the other runs in account\.jsonl"):
        require_no_run(shared.parent / "first")


def test_what_cannot_go_on_with_a_shared_ledger_is_refused_with_what_was_spent(shared, monkeypatch):
    spent = "has spent ε = 2 at δ = 1e-05"
    refused(shared, BudgetExhaustedError, f"{spent}, and the target", config(target_epsilon=2.0))
    refused(shared, BudgetExhaustedError, spent, config(noise_multiplier=9.0, max_epsilon=1.5))
    refused(shared, InvalidArgumentError, f"{spent}.*beyond max_epsilon", config(noise_multiplier=1.0, max_epsilon=2.1))
    refused(shared, AccountingError, spent, config(target_epsilon=3.0, sampling="fixed-size"))
    counted = config(class_weights="counted", class_weights_epsilon=0.1, target_epsilon=3.0)
    refused(shared, InvalidArgumentError, "counted with noise", counted)
    refused(shared, InvalidArgumentError, "ordinary run", replace(config(), privacy=None))
    kept = shared.with_name("account.jsonl.data.json")
    said = kept.read_text()
    kept.write_text(said.replace("digits", "adult"))
    refused(shared, DatasetError, f"other data .task adult.*{spent}", config(target_epsilon=3.0))
    kept.unlink()
    refused(shared, InvalidArgumentError, f"nobody can say.*{spent}", config(target_epsilon=3.0))
    kept.write_text("{")
    refused(shared, InvalidArgumentError, "damaged", config(target_epsilon=3.0))
    kept.write_text(said)
    writer = LedgerFile.open(shared)
    refused(shared, LedgerError, "in use by another writer", config(target_epsilon=3.0))
    writer.close()


def test_a_ledger_for_other_units_and_a_missing_folder_are_refused(tmp_path):
    ledger = tmp_path / "account.jsonl"
    Ledger(ledger, contract=Contract(OBSERVED, OPERATING_SYSTEM, unit="one user (by id)")).close()
    ledger.with_name("account.jsonl.data.json").write_text('{"format": 1, "task": "digits", "data": null}')
    refused(ledger, ContractChangedError, "its ε is for one user", config())
    with pytest.raises(InvalidArgumentError, match="folder does not exist"):
        run(config(), tmp_path / "out", shared_ledger=tmp_path / "nowhere" / "account.jsonl")


def test_the_ledger_of_a_run_of_its_own_can_be_shared_later(tmp_path):
    run(config(), tmp_path / "first")
    own = tmp_path / "first" / "ledger.jsonl"
    second = run(config(target_epsilon=3.0), tmp_path / "second", shared_ledger=own)
    assert second.summary["epsilon"] == epsilon(read_ledger(own).events, DELTA)
    for name in ("first", "second"):
        assert all(row.held for row in agreement(RunFiles.read(tmp_path / name), DELTA))
    (data,) = status_of(tmp_path, DELTA)
    assert [(one.place, one.steps, one.shared) for one in data.runs] == [("first", 3, False), ("second", 3, True)]
    assert data.runs[0].epsilon == pytest.approx(2.0, abs=0.01)
    assert data.private == second.summary["epsilon"]


def test_no_part_of_a_shared_ledger_has_an_epsilon_once_something_was_found(shared):
    contract = read_ledger(shared).phases[-1]
    with Ledger(shared, contract=contract.contract, phase=contract.name) as ledger:
        ledger.end(NotEstablished(code="DP301", place="the model", what="it leaks"))
    (data,) = status_of(shared.parent, DELTA)
    assert data.runs[0].epsilon == data.private == math.inf
    refused(shared, NotEstablishedError, "leaked", config(target_epsilon=3.0))


def test_a_run_in_a_shared_ledger_goes_on_until_another_run_has_gone_on_with_the_account(shared, tmp_path):
    out = stopped(shared, tmp_path / "second", 4.0)
    finished = resume(out)
    assert [finished.summary[name] for name in ("status", "steps", "lost_steps")] == ["completed", 2, 1]
    assert all(row.held for row in agreement(RunFiles.read(out), DELTA))
    left = stopped(shared, tmp_path / "third", 6.0)
    run(config(target_epsilon=8.0), tmp_path / "fourth", shared_ledger=shared)
    before = {path.name: path.read_bytes() for path in left.iterdir()}
    with pytest.raises(ContractChangedError, match=r"another run .fourth .* has gone on"):
        resume(left)
    assert {path.name: path.read_bytes() for path in left.iterdir()} == before


def test_a_damaged_account_file_is_named(shared):
    (shared.parent / "first" / "account.json").write_text("{}")
    with pytest.raises(InvalidArgumentError, match=r"account\.json.*which ledger"):
        _ = RunDirectory(shared.parent / "first").ledger


def test_a_run_that_goes_on_keeps_the_ledger_it_was_begun_with():
    result = CliRunner().invoke(main, ["train", "--resume", "run", "--ledger", "account.jsonl"])
    assert result.exit_code == 2
    assert "keeps the ledger" in result.output
