"""What launches of Triton kernels share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU the current one: Triton launches there, wherever the operands lie."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def power_of_two(number: int, smallest: int, largest: int) -> int:
    """Return the least power of two that is at least `number`, within the bounds, which are powers of two."""
    return max(smallest, min(largest, 1 << max(0, number - 1).bit_length()))


def must_widen(tensor: Tensor) -> bool:
    """Say whether a kernel has to turn operands to float32 before it multiplies them as matrices.

    Triton's interpreter multiplies the bits of bfloat16 as if they were whole numbers. A GPU needs no such step, and
    it changes no product: those of 16-bit values are exact in float32.
    """
    return bool(triton.knobs.runtime.interpret) and tensor.dtype == torch.bfloat16
