"""A known draw, made once on each device before its first noise: by the kernel, or by torch."""

from __future__ import annotations

from functools import cache

import torch

from hushgrad.kernels.known_answers import require_known_answer
from hushgrad.noise.cuda import definition
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.randomness import Address, KeyStream

# Enough that values of the remainder and of the tail are among them (some ten, for this key).
VALUES = 1 << 15


@cache
def noise(device: torch.device, by_kernel: bool) -> None:
    """Draw with a public key on the device and on the CPU, and compare.

    Values from strips are the same to the bit; those of the tail may differ in the last place.
    """
    key, address = CipherKey.of(KeyStream.fixed_for_tests(8439)), Address(3, 2, 1)
    total = torch.linspace(-1, 1, VALUES, dtype=torch.float32, device="cpu")
    expected = definition.noisy_update(total, noise_std=1.5, divisor=3.0, key=key, address=address)
    draw = definition.noisy_update
    if by_kernel:
        from hushgrad.noise.cuda import kernel

        draw = kernel.noisy_update
    found = draw(total.to(device), noise_std=1.5, divisor=3.0, key=key, address=address).cpu()
    is_tail = definition.standard_normal(VALUES, device="cpu", key=key, address=address).abs() > 3.7
    is_same = (found == expected) | is_tail
    require_known_answer(bool(is_same.all()) and torch.allclose(found, expected, rtol=1e-6, atol=1e-6), "noise", device)
