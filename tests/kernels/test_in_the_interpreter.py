"""The kernels on the CPU, in Triton's interpreter: the files of `interpreted/`, in a process of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hushgrad

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_compute_their_definitions_in_the_interpreter():
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "HUSHGRAD_KERNELS"))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(FOLDER)]
    environment = {**kept, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 80, done.stdout


def test_every_kernel_has_a_file_there():
    source = Path(hushgrad.__file__).parent
    kernels = {path.relative_to(source) for path in source.rglob("*.py") if "@triton.jit" in path.read_text("utf-8")}
    names = {"/".join((path.parts[0], path.stem)) for path in kernels}
    assert names == {"noise/kernel", "gradients/gram", "gradients/instantiate"}
    assert {path.parent.name for path in kernels} == {"cuda"}
    tests = {f"{path.parent.name}/{path.stem.removeprefix('test_')}" for path in FOLDER.glob("*/test_*.py")}
    assert tests >= names
