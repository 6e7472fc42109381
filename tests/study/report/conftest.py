"""Small private runs and one small sweep, made once; tests that alter files take copies."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hushgrad.study.configuration import Privacy, suggested_run
from hushgrad.study.run import Reporter, run
from hushgrad.study.sweep.folder import SweepFolder
from hushgrad.study.sweep.plan import Grid, Subject, make_plan

sys.path.insert(0, str(Path(__file__).parent))

from tampering import private

HOSTILE = "<script>document.title='hacked'</script>\"><img src=x onerror=alert(1)>"


def small(privacy, **changes):
    return replace(suggested_run("digits", privacy=privacy), **{"batch_size": 400, "epochs": 2, **changes})


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The folder of a private run."""
    return run(
        small(Privacy(noise_multiplier=3.0, max_grad_norm=1.0)), tmp_path_factory.mktemp("report") / "a"
    ).directory.path


@pytest.fixture
def run_folder(finished_run, tmp_path):
    """A copy of a private run's folder, under a hostile name."""
    folder = tmp_path / HOSTILE.replace("/", "-")
    shutil.copytree(finished_run, folder)
    return folder


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory):
    """The folder of a sweep with a hostile label: ordinary, σ=0, σ=3; one of its runs never ran."""
    path = tmp_path_factory.mktemp("report") / "sweep"
    subject = Subject(HOSTILE, task="digits", settings={"batch_size": 400, "epochs": 1})
    plan = make_plan(f"sweep {HOSTILE}", (subject,), Grid(noise_multipliers=(0, 3, 5), seeds=(0,)))
    folder = SweepFolder.open(path, plan)
    for planned in plan.runs[:3]:
        noise = {"ordinary": None, "σ=0": 0.0, "σ=3": 3.0}[planned.aim]
        privacy = None if noise is None else Privacy(noise_multiplier=noise, max_grad_norm=1.0)
        run(small(privacy, epochs=1), folder.finished(planned.name))
    folder.record_failure(plan.runs[3].name, "RuntimeError", "a value of the data: 42")
    return path


@pytest.fixture
def sweep_folder(finished_sweep, tmp_path):
    """A copy of the sweep's folder."""
    return Path(shutil.copytree(finished_sweep, tmp_path / "sweep"))


@pytest.fixture(scope="session")
def left_behind(tmp_path_factory):
    """The folder of a run of 8 steps as it was during step 6 (as SIGKILL would have left it), and at its end."""
    base = tmp_path_factory.mktemp("contradictions")

    def keep(step):
        if step == 6:
            shutil.copytree(base / "whole", base / "killed")

    run(private(), base / "whole", Reporter(on_step=keep))
    return base


@pytest.fixture(scope="session")
def of_another_run(tmp_path_factory):
    """The ledger of another run with the same settings."""
    return run(private(seed=1), tmp_path_factory.mktemp("contradictions") / "b").directory.ledger


@pytest.fixture
def folder(left_behind, tmp_path):
    return shutil.copytree(left_behind / "whole", tmp_path / "run")
