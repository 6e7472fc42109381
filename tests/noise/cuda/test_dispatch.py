"""Which noise is drawn on a GPU, and by what."""

from types import SimpleNamespace

import pytest
import torch

from hushgrad.errors import ProtocolError
from hushgrad.noise.cuda import definition, dispatch
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.noise.cuda.dispatch import draws_noise
from hushgrad.randomness import Address, KeyStream

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
NOISE = {"noise_std": 1.5, "divisor": 3.0, "key": CipherKey.of(KeyStream.fixed_for_tests(1)), "address": Address(0)}


def operand(device=GPU, dtype=torch.float32):
    """Return what the decisions look at; no tensor can be made on a device that is not there."""
    return SimpleNamespace(device=device, dtype=dtype)


def test_noise_is_drawn_on_a_gpu_with_and_without_triton_and_in_float64_on_the_cpu(choose_kernels):
    for value in (None, "torch"):
        choose_kernels(value)
        assert draws_noise(operand())
        assert not draws_noise(operand(CPU))
        assert not draws_noise(operand(dtype=torch.float64))
        assert not draws_noise(operand(torch.device("mps")))


def test_noise_without_triton_is_the_definition(choose_kernels):
    choose_kernels("torch")
    total = torch.randn(1000)
    assert torch.equal(dispatch.noisy_update(total, **NOISE), definition.noisy_update(total, **NOISE))


def test_no_noise_is_drawn_while_a_cuda_graph_is_captured(choose_kernels, monkeypatch):
    """Guarantee: noise is never drawn while a CUDA graph is captured, because every replay would add the same noise."""
    choose_kernels("torch")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert dispatch.is_captured(operand())
    assert not dispatch.is_captured(operand(CPU))
    monkeypatch.setattr(dispatch, "is_captured", lambda total: True)
    total = torch.zeros(10)
    with pytest.raises(ProtocolError, match="replay"):
        dispatch.noisy_update(total, overwrite=True, **NOISE)
    assert not total.any()
