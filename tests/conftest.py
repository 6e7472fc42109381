"""What all tests share."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from hushgrad.guards.probing.loss_trace import LossTrace
from hushgrad.session.own_backward import OwnBackward

# The same examples in every run, so that a failure is seen again; HYPOTHESIS_PROFILE=default draws new ones.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

TESTS = Path(__file__).parent
# What touches packages other than torch and NumPy, which `make test-latest` runs against their newest versions.
# tests/test_rings.py looks for imports elsewhere.
WITH_OTHER_PACKAGES = (
    "accounting",  # dp-accounting, scipy
    "benchmarks",  # Opacus, matplotlib, rich
    "cli",  # click, rich
    "checks",  # scipy, Opacus, click
    "docs",  # click
    "crash",  # transformers, TRL, Lightning
    "extension",  # scipy
    "guards",  # scipy
    "integrations",  # transformers, Accelerate, TRL, Lightning, Fabric
    "kernels",  # Triton
    "light_install",  # click
    "mechanism",  # click
    "migration",  # Opacus, click
    "releases",  # scipy
    "noise",  # numba, cryptography, scipy
    "opacus_cases",
    "parallel",  # Accelerate
    "sampling",  # scipy
    "sparse_rows",  # scipy
    "study",  # scikit-learn, matplotlib, Jinja, optuna, tensorboard, safetensors, pyarrow
    "zoo",  # transformers, peft, Opacus
    "test_randomness.py",  # cryptography
    "test_readme.py",  # scikit-learn
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --slow."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what touches other packages; skip what is marked slow, visibly, unless --slow is given."""
    for item in items:
        if item.path.relative_to(TESTS).parts[0] in WITH_OTHER_PACKAGES:
            item.add_marker(pytest.mark.packages)
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow") is not None:
                item.add_marker(pytest.mark.skip(reason="slow: run it with --slow"))


@pytest.fixture(autouse=True, scope="module")
def _what_is_old_is_no_garbage() -> None:
    """Leave what was there before a file (tests, libraries) out of its collections of garbage; some ask for many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk(request: pytest.FixtureRequest) -> Iterator[None]:
    """Outlast the end of a process, not of a machine: `os.fsync` asks for a descriptor that is open, and no more.

    A test cannot cut the power, and what a killed process wrote is there without it; on some disks each call takes as
    long as a whole test. Those of ledgers wait for it.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent != TESTS / "accounting" / "ledger":
            patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests run side by side in several processes; one thread each keeps them from fighting over the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _gradients_stay_on() -> Iterator[None]:
    """No test leaves gradients switched off for those after it; one that does fails, and no other."""
    yield
    were_on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert were_on, "the test left gradients switched off"


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far ledgers went is kept for each test by itself, and never in the home of who runs them."""
    monkeypatch.setenv("HUSHGRAD_STATE", str(tmp_path_factory.getbasetemp() / "state" / os.urandom(8).hex()))


@pytest.fixture(autouse=True)
def _reproducible_data() -> None:
    """Seed what tests draw their models and data from. The library's own noise does not depend on it.

    Where there is no accelerator, `torch.manual_seed` keeps three stack traces for one that might come: it takes longer
    than many a test.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(20)
    else:
        torch.default_generator.manual_seed(20)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with real data sets, or a visible skip."""
    folder = os.environ.get("HUSHGRAD_DATA")
    if not folder:
        pytest.skip("HUSHGRAD_DATA is not set: no real data to test on")
    return Path(folder)


@pytest.fixture(scope="session")
def forked_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A program that stands in for `sys.executable` and starts without importing torch: see fork_server/server.py.

    For programs of one thread that take no setting which is read at the start. Where Python cannot watch a child by a
    descriptor it is `sys.executable`.
    """
    if not hasattr(os, "pidfd_open"):
        yield sys.executable
        return
    folder = tmp_path_factory.mktemp("fork")
    script = TESTS / "fork_server" / "server.py"
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    server = subprocess.Popen(
        [sys.executable, str(script), str(folder / "socket"), str(folder / "python")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **one_thread},
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    yield str(folder / "python")
    server.stdin.close()
    assert server.wait(timeout=60) == 0
    server.stdout.close()


@pytest.fixture
def forked_programs(forked_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test and the code under it start by `sys.executable` is a fork that has imported torch."""
    monkeypatch.setattr(sys, "executable", forked_python)


@pytest.fixture
def choose_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], None]]:
    """Set HUSHGRAD_KERNELS, None for not at all, and forget what was found before."""
    from hushgrad.kernels.available import has_kernels

    def chosen(value: str | None) -> None:
        if value is None:
            monkeypatch.delenv("HUSHGRAD_KERNELS", raising=False)
        else:
            monkeypatch.setenv("HUSHGRAD_KERNELS", value)
        has_kernels.cache_clear()

    yield chosen
    has_kernels.cache_clear()


@pytest.fixture(autouse=True)
def no_trace_of_an_abandoned_loop() -> Iterator[None]:
    """A loop that is left in the middle of an item leaves a mode behind until its session is collected."""
    yield
    for trace in (*LossTrace.here(), *OwnBackward.here()):
        trace.end()
