"""What runs in a kernel, and that nothing else does."""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hushgrad.errors import InvalidArgumentError, KernelMismatchError, ProtocolError
from hushgrad.kernels import available as dispatch
from hushgrad.kernels import known_answers as self_test
from hushgrad.kernels.available import draws_noise, has_kernels, measures
from hushgrad.noise.cuda import definition as draws
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.randomness import Address, KeyStream

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
NOISE = {"noise_std": 1.5, "divisor": 3.0, "key": CipherKey.of(KeyStream.fixed_for_tests(1)), "address": Address(0)}


def operand(device=GPU, dtype=torch.float32):
    """Return what the decisions look at; no tensor can be made on a device that is not there."""
    return SimpleNamespace(device=device, dtype=dtype)


@pytest.fixture
def choose(monkeypatch):
    """Set the environment variable, None for not at all, and forget what was found before."""

    def chosen(value):
        if value is None:
            monkeypatch.delenv("HUSHGRAD_KERNELS", raising=False)
        else:
            monkeypatch.setenv("HUSHGRAD_KERNELS", value)
        has_kernels.cache_clear()

    yield chosen
    has_kernels.cache_clear()


def test_kernels_measure_what_lies_on_a_gpu_where_triton_is_installed(choose, monkeypatch):
    choose(None)
    for installed in (True, False):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=installed: object() if found else None)
        has_kernels.cache_clear()
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert measures(operand(dtype=dtype), operand(dtype=dtype)) is installed
        assert not measures(operand(dtype=torch.float64), operand(dtype=torch.float64))
        assert not measures(operand(), operand(dtype=torch.bfloat16))
        assert not measures(operand(), operand(CPU))
        assert not measures(operand(CPU), operand(CPU))


def test_noise_is_drawn_on_a_gpu_with_and_without_triton_and_in_float64_on_the_cpu(choose):
    for value in (None, "torch"):
        choose(value)
        assert draws_noise(operand())
        assert not draws_noise(operand(CPU))
        assert not draws_noise(operand(dtype=torch.float64))
        assert not draws_noise(operand(torch.device("mps")))


def test_kernels_can_be_switched_off_and_a_typo_does_not(choose):
    choose("torch")
    assert not has_kernels()
    choose("tritn")
    with pytest.raises(InvalidArgumentError, match="HUSHGRAD_KERNELS"):
        has_kernels()


def test_neither_the_package_nor_the_dispatch_imports_triton():
    check = "import sys, hushgrad, hushgrad.engine, hushgrad.kernels.available; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_noise_without_triton_is_the_definition(choose):
    choose("torch")
    total = torch.randn(1000)
    assert torch.equal(dispatch.noisy_update(total, **NOISE), draws.noisy_update(total, **NOISE))


def test_no_noise_is_drawn_while_a_cuda_graph_is_captured(choose, monkeypatch):
    """Guarantee: noise is never drawn while a CUDA graph is captured, because every replay would add the same noise."""
    choose("torch")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert dispatch.is_captured(operand())
    assert not dispatch.is_captured(operand(CPU))
    monkeypatch.setattr(dispatch, "is_captured", lambda total: True)
    total = torch.zeros(10)
    with pytest.raises(ProtocolError, match="replay"):
        dispatch.noisy_update(total, overwrite=True, **NOISE)
    assert not total.any()


def test_noise_that_is_not_what_was_defined_raises_before_its_first_use(choose, monkeypatch):
    """Guarantee: a kernel that does not compute its definition on a device raises there before its first result is
    used.

    The definition itself is changed here after the known answer was computed by the true one: one bit of one value.
    """
    choose("torch")
    self_test.noise.cache_clear()
    true, calls = draws.noisy_update, []

    def wrong_on_the_device(total, **arguments):
        calls.append(total)
        update = true(total, **arguments)
        if len(calls) == 2:  # the known answer is asked for first
            update.view(torch.int32)[1234] ^= 1
        return update

    monkeypatch.setattr(draws, "noisy_update", wrong_on_the_device)
    total = torch.zeros(10)
    with pytest.raises(KernelMismatchError, match="noise"):
        dispatch.noisy_update(total, overwrite=True, **NOISE)
    assert not total.any()
    self_test.noise.cache_clear()


def test_the_self_test_of_noise_meets_the_remainder_and_the_tail_and_runs_once(monkeypatch):
    self_test.noise.cache_clear()
    self_test.noise(CPU, False)
    monkeypatch.setattr(draws, "noisy_update", None)  # not called again
    self_test.noise(CPU, False)
    self_test.noise.cache_clear()
    monkeypatch.undo()
    z = draws.standard_normal(
        self_test.VALUES, device="cpu", key=CipherKey.of(KeyStream.fixed_for_tests(8439)), address=Address(3, 2, 1)
    )
    assert (z.abs() > 3.75).sum() >= 2
