"""Whole sweeps, in processes of their own. Own functions keep them quick and deterministic."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import ContractChangedError, InvalidArgumentError
from hushgrad.study.sweep.folder import SweepFolder
from hushgrad.study.sweep.plan import Grid, Subject, make_plan
from hushgrad.study.sweep.results import write_results
from hushgrad.study.sweep.scheduler import CoreBudget, run_sweep

pytestmark = pytest.mark.usefixtures("forked_programs")

PYTHON = sys.executable  # a sweep that is killed itself, which must be gone when it has been waited for
PATIENCE = 600  # seconds, against a hang alone: a busy machine takes minutes for what takes seconds
GRID = Grid(noise_multipliers=(1, 2), seeds=(0, 1))


def planned(function, grid=GRID):
    return make_plan("test", (Subject("own", function=f"own:{function}"),), grid)


def swept(plan, out, cores=2):
    folder = SweepFolder.open(out, plan)
    end = run_sweep(plan, folder, CoreBudget(cores))
    return folder, end, write_results(folder, plan)


def table(out):
    return (out / "table.json").read_bytes(), (out / "table.csv").read_bytes()


def test_a_sweep_killed_half_way_and_resumed_gives_the_table_of_one_that_was_never_stopped(own):
    """Guarantee: a finished run is never run again, and no attempt's ledger is removed."""
    plan = planned("claims", Grid(noise_multipliers=(1,), seeds=(0, 1)))
    swept(plan, own / "whole")
    (own / "slow").touch()  # runs of seed 1 wait for ever
    script = (
        "import sys; from pathlib import Path\n"
        "from hushgrad.study.sweep.folder import SweepFolder\n"
        "from hushgrad.study.sweep.scheduler import CoreBudget, run_sweep\n"
        "folder = SweepFolder.existing(Path('cut')); run_sweep(folder.plan(), folder, CoreBudget(2))\n"
    )
    SweepFolder.open(own / "cut", plan)
    process = subprocess.Popen([PYTHON, "-c", script])
    try:
        deadline = time.monotonic() + PATIENCE
        ledger = own / "cut" / "working" / "own-sigma=1-seed=1" / "ledger.jsonl"
        while not ledger.exists() or not read_ledger(ledger).steps:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (own / "slow").unlink()
    finished = sorted((own / "cut" / "runs").glob("*/summary.json"))
    assert 0 < len(finished) < len(plan.runs)
    before = {path: path.stat().st_mtime_ns for path in finished}
    folder, end, _ = swept(plan, own / "cut")
    assert not end.failed
    assert not end.interrupted
    assert {path: path.stat().st_mtime_ns for path in finished} == before
    assert table(own / "cut") == table(own / "whole")
    abandoned = folder.attempts_abandoned()
    assert any(path.name == "own-sigma=1-seed=1-1" and (path / "ledger.jsonl").exists() for path in abandoned)


def test_the_workers_of_a_killed_sweep_end_with_it(own):
    (own / "slow").touch()
    plan = planned("claims", Grid(noise_multipliers=(1,), seeds=(1,), baseline=False))
    SweepFolder.open(own / "out", plan)
    script = (
        "from pathlib import Path\nfrom hushgrad.study.sweep.folder import SweepFolder\n"
        "from hushgrad.study.sweep import scheduler\n"
        "start = scheduler._start\n"
        "def say(*arguments):\n"
        "    process = start(*arguments); print(process.pid, flush=True); return process\n"
        "scheduler._start = say\n"
        "folder = SweepFolder.existing(Path('out'))\n"
        "scheduler.run_sweep(folder.plan(), folder, scheduler.CoreBudget(1))\n"
    )
    process = subprocess.Popen([PYTHON, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    deadline = time.monotonic() + PATIENCE
    while not (own / "reached").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    while _alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_crashing_configuration_is_reported_and_the_rest_is_finished(own):
    folder, end, rows = swept(planned("crashes_at_two", Grid(noise_multipliers=(1, 2), seeds=(0,))), own / "out")
    assert end.failed == ("own-sigma=2-seed=0",)
    by_status = {row.name: (row.status, row.error) for row in rows}
    assert by_status["own-sigma=2-seed=0"] == ("failed", "RuntimeError: see the run's log")
    assert [status for status, _ in by_status.values()].count("completed") == 2
    assert "a value of the data" not in (own / "out" / "table.json").read_text()
    # What the crashed attempt has released still counts.
    assert [read_ledger(path / "ledger.jsonl").steps for path in folder.attempts_abandoned()] == [4]


def test_a_process_that_dies_without_a_word_is_a_failed_run(own):
    _, end, rows = swept(planned("dies", Grid(noise_multipliers=(1,), seeds=(0,), baseline=False)), own / "out")
    assert end.failed == (rows[0].name,)
    assert rows[0].error == "Crash: the process ended with status 11; see the run's log"


@pytest.mark.parametrize(
    ("function", "error"),
    [("forgets_the_ledger", "LedgerError: DP502"), ("other_noise", "ContractChangedError: DP404"), ("absent", "DP101")],
)
def test_the_epsilon_of_an_own_functions_run_is_computed_from_its_ledger(own, function, error):
    """Guarantee: the epsilon of an own function's run is computed from its ledger.

    A private call that leaves no ledger, or one with other noise than was asked for, is an error.
    """
    _, _, rows = swept(planned(function, Grid(noise_multipliers=(1,), seeds=(0,), baseline=False)), own / "out")
    assert error in rows[0].error
    assert rows[0].epsilon is None


def test_a_sweep_that_is_finished_runs_nothing_and_keeps_its_table(own):
    plan = planned("claims", Grid(noise_multipliers=(1,), seeds=(0,)))
    swept(plan, own / "out")
    before = table(own / "out")
    (own / "own.py").write_text("raise RuntimeError")
    _, end, _ = swept(plan, own / "out")
    assert not end.failed
    assert table(own / "out") == before


def test_the_folder_of_another_sweep_or_of_something_else_is_refused(own):
    SweepFolder.open(own / "out", planned("claims"))
    with pytest.raises(ContractChangedError, match="another plan"):
        SweepFolder.open(own / "out", planned("dies"))
    with pytest.raises(InvalidArgumentError, match="new, empty, or hold this sweep"):
        SweepFolder.open(own, planned("claims"))


def test_a_sweep_is_run_by_one_process_at_a_time(own):
    plan = planned("claims")
    folder = SweepFolder.open(own / "out", plan)
    with folder.locked(), pytest.raises(InvalidArgumentError, match="another process is running this sweep"):
        run_sweep(plan, folder, CoreBudget(1))


def test_runs_of_tasks_are_swept_in_processes_with_their_own_settings(tmp_path):
    subject = Subject("digits", task="digits", settings={"epochs": 1, "batch_size": 400})
    plan = make_plan("test", (subject,), Grid(noise_multipliers=(4,), seeds=(3,)))
    folder, end, rows = swept(plan, tmp_path / "out")
    assert not end.failed
    summary = json.loads((folder.finished(rows[1].name) / "summary.json").read_text())
    assert (summary["seed"], summary["epochs"], summary["noise_multiplier"]) == (3, 1, 4.0)
    assert rows[1].epsilon == summary["epsilon"]
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "out" / "accuracy.svg").read_bytes()
    assert (tmp_path / "out" / "curves-1.svg").exists()
    assert os.stat(tmp_path / "out").st_mode & 0o777 == 0o700
