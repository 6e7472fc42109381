"""Memory that a step frees stays with the process, unless the user has set the allocator."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from hushgrad.errors import InvalidArgumentError
from hushgrad.freed_memory import OF_THE_USER, VARIABLE, keep_freed_memory

SESSION = """
import ctypes

import torch

import hushgrad

library = ctypes.CDLL(None)
library.sbrk.restype = ctypes.c_void_p


def show():
    block = torch.ones(7 << 20)  # 28 MiB
    end = library.sbrk(0)
    is_on_heap = block.data_ptr() < end  # what is mapped by itself lies above
    del block
    print(is_on_heap, library.sbrk(0) == end)


show()
layer = torch.nn.Linear(2, 1)
mechanism = hushgrad.DPSGD(
    noise_multiplier=1.0,
    clipping=hushgrad.FlatClipping(1.0),
    sampling=hushgrad.PoissonSampling(rate=0.01),
    expected_batch_size=4,
)
hushgrad.privatize(layer, torch.optim.SGD(layer.parameters(), lr=0.1), mechanism)
show()
"""

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


@on_glibc
def test_a_session_lets_the_process_keep_what_it_frees() -> None:
    bare = {name: value for name, value in os.environ.items() if name not in (*OF_THE_USER, VARIABLE, "GLIBC_TUNABLES")}
    done = subprocess.run([sys.executable, "-c", SESSION], capture_output=True, text=True, check=True, env=bare)
    before, after = (line.split() for line in done.stdout.splitlines())
    assert before[0] == "False"  # mapped by itself, and given back
    assert after == ["True", "True"]  # on the heap, which stays as large as it was


@pytest.mark.parametrize(
    ("name", "value"),
    [(VARIABLE, "return"), *((name, "131072") for name in OF_THE_USER), ("GLIBC_TUNABLES", "glibc.malloc.top_pad=1")],
)
def test_a_users_own_setting_of_the_allocator_is_left_alone(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(_: None) -> None:
        raise AssertionError("the allocator was touched")

    monkeypatch.setattr("hushgrad.freed_memory.ctypes.CDLL", loaded)
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory.__wrapped__()


def test_a_c_library_other_than_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, *OF_THE_USER, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("hushgrad.freed_memory.ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory.__wrapped__()


def test_another_word_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(InvalidArgumentError, match=VARIABLE):
        keep_freed_memory.__wrapped__()
