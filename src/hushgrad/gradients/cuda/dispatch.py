"""The one place that decides which norms are taken in a kernel: of operands on a CUDA device, where Triton is.

A kernel's known answers (`hushgrad.gradients.cuda.known_answers`) are asked for before its first use on a device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hushgrad.gradients.cuda import known_answers
from hushgrad.kernels.available import has_kernels

_FACTORS = (torch.float32, torch.bfloat16, torch.float16)


def measures(left: Tensor, right: Tensor) -> bool:
    """Say whether norms of outer products of these factors are taken by kernels; float64 never is."""
    is_there = left.device.type == right.device.type == "cuda"
    return is_there and left.dtype == right.dtype and left.dtype in _FACTORS and has_kernels()


def gram_norms(left: Tensor, right: Tensor) -> Tensor:
    """Return ⟨L Lᵀ, R Rᵀ⟩: `gram.norms`."""
    from hushgrad.gradients.cuda import gram

    known_answers.gram(left.device, left.dtype)
    return gram.norms(left, right)


def instantiated_norms(left: Tensor, right: Tensor, *, keep: bool) -> tuple[Tensor, Tensor | None]:
    """Return squared norms from gradients, and these if they are to be kept: `instantiate.norms`."""
    from hushgrad.gradients.cuda import instantiate

    known_answers.instantiate(left.device, left.dtype)
    return instantiate.norms(left, right, keep=keep)
