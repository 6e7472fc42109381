"""Which norms are taken in a kernel, and that no others are."""

import importlib.util
from types import SimpleNamespace

import torch

from hushgrad.gradients.cuda.dispatch import measures
from hushgrad.kernels.available import has_kernels

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def operand(device=GPU, dtype=torch.float32):
    """Return what the decisions look at; no tensor can be made on a device that is not there."""
    return SimpleNamespace(device=device, dtype=dtype)


def test_kernels_measure_what_lies_on_a_gpu_where_triton_is_installed(choose_kernels, monkeypatch):
    choose_kernels(None)
    for installed in (True, False):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=installed: object() if found else None)
        has_kernels.cache_clear()
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert measures(operand(dtype=dtype), operand(dtype=dtype)) is installed
        assert not measures(operand(dtype=torch.float64), operand(dtype=torch.float64))
        assert not measures(operand(), operand(dtype=torch.bfloat16))
        assert not measures(operand(), operand(CPU))
        assert not measures(operand(CPU), operand(CPU))
