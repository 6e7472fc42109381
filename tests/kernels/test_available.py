"""Whether kernels can run, and that nothing of them is there before one is used."""

import importlib.util
import subprocess
import sys

import pytest

from hushgrad.errors import InvalidArgumentError
from hushgrad.kernels.available import has_kernels


@pytest.mark.parametrize("is_installed", [True, False])
def test_there_are_kernels_where_triton_is_installed(is_installed, choose_kernels, monkeypatch):
    asked = []
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: asked.append(name) or (object() if is_installed else None)
    )
    choose_kernels(None)
    assert has_kernels() is is_installed
    assert has_kernels() is is_installed
    assert asked == ["triton"]  # the answer stays


def test_kernels_can_be_switched_off_and_a_typo_does_not(choose_kernels):
    choose_kernels("torch")
    assert not has_kernels()
    choose_kernels("tritn")
    with pytest.raises(InvalidArgumentError, match="HUSHGRAD_KERNELS"):
        has_kernels()


def test_neither_triton_nor_a_kernel_is_imported_before_one_is_used():
    """Neither the package nor what decides imports any of them."""
    check = """
import sys
import hushgrad.engine, hushgrad.gradients.cuda.dispatch, hushgrad.noise.cuda.dispatch
unused = {"triton", "hushgrad.kernels.launch", "hushgrad.noise.cuda.kernel"}
unused |= {"hushgrad.gradients.cuda.gram", "hushgrad.gradients.cuda.instantiate"}
sys.exit(bool(unused & sys.modules.keys()))
"""
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
