"""A program that runs in a fork of the server behaves as one that Python starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no fork server on this system")

PATIENCE = 60
ECHO = "import os, sys; print(sys.argv[1:], sys.stdin.read(), os.environ['TOLD'], os.getcwd()); sys.exit(7)"
WAIT = "import os, sys, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)"


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("started_by", ["fork", "Python"])
def test_arguments_input_environment_folder_and_status_are_those_of_the_program(
    forked_python: str, tmp_path: Path, started_by: str
) -> None:
    python = forked_python if started_by == "fork" else sys.executable
    environment = {**os.environ, "TOLD": "yes"}
    ran = subprocess.run(
        [python, "-c", ECHO, "a", "b c"], input="in", env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, f"['a', 'b c'] in yes {tmp_path}\n", "")


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("raise ValueError('no')", 1, "ValueError: no"),
        ("import sys; sys.exit('bad')", 1, "bad"),
        ("import os; os._exit(5)", 5, ""),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import atexit; atexit.register(print, 'last', file=__import__('sys').stderr)", 0, "last"),
    ],
)
def test_a_program_ends_as_it_would_by_itself(forked_python: str, code: str, status: int, said: str) -> None:
    for python in (forked_python, sys.executable):
        ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        assert ran.returncode == status
        assert said in ran.stderr


@pytest.mark.parametrize("started_by", ["fork", "Python"])
def test_what_is_written_without_a_buffer_is_there_when_the_program_is_killed(
    forked_python: str, started_by: str
) -> None:
    python = forked_python if started_by == "fork" else sys.executable
    code = "import os, sys; sys.stdout.write('out'); os.kill(os.getpid(), 9)"
    ran = subprocess.run([python, "-u", "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (-9, "out")


def test_files_and_modules_run_as_the_main_program(forked_python: str, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("word = 'found'\n")
    (tmp_path / "main.py").write_text("import sys, helper\nprint(__name__, helper.word, sys.argv[1:])\n")
    for arguments in ([str(tmp_path / "main.py"), "x"], ["-m", "main", "x"]):
        ran = subprocess.run([forked_python, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.stdout == "__main__ found ['x']\n", ran.stderr


def test_torch_and_hushgrad_are_there_with_one_thread_and_train(forked_python: str) -> None:
    code = (
        "import sys; assert {'torch', 'hushgrad.engine'} <= sys.modules.keys()\n"
        "import os, torch; assert torch.get_num_threads() == 1\n"
        "from hushgrad import DPSGD, FlatClipping, PoissonSampling, privatize\n"
        "m = torch.nn.Linear(3, 1); o = torch.optim.SGD(m.parameters(), lr=0.1)\n"
        "s = privatize(m, o, DPSGD(noise_multiplier=1.0, clipping=FlatClipping(1.0), "
        "sampling=PoissonSampling(0.1), expected_batch_size=4))\n"
        "s.backward(m(torch.ones(4, 3)).squeeze(1)); o.step(); print(m.weight.tolist())\n"
    )
    runs = [subprocess.run([forked_python, "-c", code], capture_output=True, text=True) for _ in range(2)]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert runs[0].stdout != runs[1].stdout  # noise is never shared between forks


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_the_program_and_none_is_left_behind(forked_python: str, number: signal.Signals) -> None:
    process = subprocess.Popen([forked_python, "-c", WAIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert child != process.pid
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -number
    deadline = time.monotonic() + PATIENCE
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("setting", ["OMP_NUM_THREADS=2", "NUMBA_DISABLE_JIT=1", "OMP_THREAD_LIMIT=1"])
def test_a_setting_that_is_read_at_the_start_is_refused(forked_python: str, setting: str) -> None:
    name, value = setting.split("=")
    environment = {**os.environ, name: value}
    ran = subprocess.run([forked_python, "-c", "pass"], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 97
    assert name in ran.stderr
