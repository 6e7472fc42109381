"""The one place that decides what runs in a kernel: operands on a CUDA device, where Triton can be imported.

Never on the CPU. `HUSHGRAD_KERNELS=torch` in the environment does without kernels; noise has the same values then.
Neither Triton nor a kernel is imported before one is used.

Before a kernel's first use on a device, it is run there on a known problem (`hushgrad.kernels.known_answers`).

Guarantee: a kernel that does not compute its definition on a device raises there before its first result is used.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from hushgrad.arguments import one_of
from hushgrad.errors import ProtocolError
from hushgrad.kernels import known_answers as self_test
from hushgrad.noise.cuda import definition as draws
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.randomness import Address

VARIABLE = "HUSHGRAD_KERNELS"

_FACTORS = (torch.float32, torch.bfloat16, torch.float16)


@cache
def has_kernels() -> bool:
    """Say whether Triton can be imported and is not switched off; the answer stays for the process."""
    choice = one_of(VARIABLE, os.environ.get(VARIABLE, "triton"), ("triton", "torch"))
    return choice == "triton" and importlib.util.find_spec("triton") is not None


def measures(left: Tensor, right: Tensor) -> bool:
    """Say whether norms of outer products of these factors are taken by kernels; float64 never is."""
    is_there = left.device.type == right.device.type == "cuda"
    return is_there and left.dtype == right.dtype and left.dtype in _FACTORS and has_kernels()


def gram_norms(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return ⟨L Lᵀ, R Rᵀ⟩ and its diagonal part: `gram_triton.norms`."""
    from hushgrad.gradients.cuda import gram as gram_triton

    self_test.gram(left.device, left.dtype)
    return gram_triton.norms(left, right)


def instantiated_norms(left: Tensor, right: Tensor, *, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Return squared norms from gradients, and these if they are to be kept: `instantiate_triton.norms`."""
    from hushgrad.gradients.cuda import instantiate as instantiate_triton

    self_test.instantiate(left.device, left.dtype)
    return instantiate_triton.norms(left, right, keep=keep)


def draws_noise(total: Tensor) -> bool:
    """Say whether noise for this total is drawn on its device; else on the CPU."""
    return total.device.type == "cuda" and total.dtype == torch.float32


def is_captured(total: Tensor) -> bool:
    """Say whether what is launched on the tensor's device now goes into a CUDA graph."""
    return total.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def noisy_update(
    total: Tensor, *, noise_std: float, divisor: float, key: CipherKey, address: Address, overwrite: bool = False
) -> Tensor:
    """Return `(total + noise_std · z) / divisor`, z by `hushgrad.noise.cuda.definition`; in a kernel if there is one.

    Guarantee: noise is never drawn while a CUDA graph is captured, because every replay would add the same noise.
    """
    if is_captured(total):
        raise ProtocolError(
            "noise would be drawn inside a CUDA graph, and every replay would add the same noise; "
            "leave optimizer.step() out of what is captured"
        )
    self_test.noise(total.device, has_kernels())
    draw = draws.noisy_update
    if has_kernels():
        from hushgrad.noise.cuda import kernel as draws_triton

        draw = draws_triton.noisy_update
    return draw(total, noise_std=noise_std, divisor=divisor, key=key, address=address, overwrite=overwrite)
