"""The one place that decides which noise is drawn on a GPU, and whether by the kernel or by torch.

Known answers (`hushgrad.noise.cuda.known_answers`) are asked for before the first draw on a device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hushgrad.errors import ProtocolError
from hushgrad.kernels.available import has_kernels
from hushgrad.noise.cuda import definition, known_answers
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.randomness import Address


def draws_noise(total: Tensor) -> bool:
    """Say whether noise for this total is drawn on its device; else on the CPU."""
    return total.device.type == "cuda" and total.dtype == torch.float32


def is_captured(total: Tensor) -> bool:
    """Say whether a CUDA graph is being captured on the tensor's device."""
    return total.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def noisy_update(
    total: Tensor, *, noise_std: float, divisor: float, key: CipherKey, address: Address, overwrite: bool = False
) -> Tensor:
    """Return `(total + noise_std · z) / divisor`, z by `hushgrad.noise.cuda.definition`; in a kernel if there is one.

    Guarantee: noise is never drawn while a CUDA graph is captured, because every replay would add the same noise.
    """
    if is_captured(total):
        raise ProtocolError(
            "noise would be drawn inside a CUDA graph, and every replay would add the same noise",
            where="noise",
            cure="Leave optimizer.step() out of the captured graph",
        )
    known_answers.noise(total.device, has_kernels())
    draw = definition.noisy_update
    if has_kernels():
        from hushgrad.noise.cuda import kernel

        draw = kernel.noisy_update
    return draw(total, noise_std=noise_std, divisor=divisor, key=key, address=address, overwrite=overwrite)
