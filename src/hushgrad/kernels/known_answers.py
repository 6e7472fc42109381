"""Known problems for the kernels, each run once for a device before its first use there.

A compiler, a driver or a device may be wrong, and what noise a GPU adds shows in no loss curve. The answers come from
the same definitions in torch on the CPU, which the test suite holds against RFC 8439 and the oracle of the gradients.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hushgrad.errors import KernelMismatchError
from hushgrad.noise.cuda import definition as draws
from hushgrad.noise.cuda.chacha import CipherKey
from hushgrad.randomness import Address, KeyStream

# Enough that values of the remainder and of the tail are among them (some ten, for this key).
VALUES = 1 << 15

# Sums of float32 products are this close to the truth; with TF32 they would not be.
TOLERANCE = 1e-5


@cache
def noise(device: torch.device, by_kernel: bool) -> None:
    """Draw with a public key on the device and on the CPU, and compare.

    Values from strips are the same to the bit; those of the tail may differ in the last place.
    """
    key, address = CipherKey.of(KeyStream.fixed_for_tests(8439)), Address(3, 2, 1)
    total = torch.linspace(-1, 1, VALUES, dtype=torch.float32, device="cpu")
    expected = draws.noisy_update(total, noise_std=1.5, divisor=3.0, key=key, address=address)
    draw = draws.noisy_update
    if by_kernel:
        from hushgrad.noise.cuda import kernel as draws_triton

        draw = draws_triton.noisy_update
    found = draw(total.to(device), noise_std=1.5, divisor=3.0, key=key, address=address).cpu()
    is_tail = draws.standard_normal(VALUES, device="cpu", key=key, address=address).abs() > 3.7
    is_same = (found == expected) | is_tail
    _require(bool(is_same.all()) and torch.allclose(found, expected, rtol=1e-6, atol=1e-6), "noise", device)


@cache
def gram(device: torch.device, dtype: torch.dtype) -> None:
    """Take norms and diagonals of a few matrices, one of them zero, on the device, and compare with float64."""
    from hushgrad.gradients.cuda import gram as gram_triton

    left, right = _problem(dtype)
    norms, diagonals = gram_triton.norms(left.to(device), right.to(device))
    squares = left.double().square().sum(2) * right.double().square().sum(2)
    is_right = _close(norms, _gradients(left, right).square().sum((1, 2))) and _close(diagonals, squares.sum(1))
    _require(is_right, "Gram", device)


@cache
def instantiate(device: torch.device, dtype: torch.dtype) -> None:
    """Form the gradients of a few examples, one of them zero, and their norms on the device; compare with float64."""
    from hushgrad.gradients.cuda import instantiate as instantiate_triton

    left, right = _problem(dtype)
    expected = _gradients(left, right)
    norms, gradients = instantiate_triton.norms(left.to(device), right.to(device), keep=True)
    thrown_away, _ = instantiate_triton.norms(left.to(device), right.to(device), keep=False)
    is_right = gradients is not None and _close(gradients, expected) and torch.equal(norms, thrown_away)
    _require(is_right and _close(norms, expected.square().sum((1, 2))), "gradient", device)


def _problem(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return factors `[3, 70, 37]` and `[3, 70, 90]`: several blocks each way, with rests; example 1 is zero."""
    generator = torch.Generator("cpu").manual_seed(8439)  # its own, so that the user's is not advanced
    shapes = ((3, 70, 37), (3, 70, 90))
    left, right = (torch.randn(shape, generator=generator, device="cpu").to(dtype) for shape in shapes)
    left[1] = 0
    return left, right


def _gradients(left: Tensor, right: Tensor) -> Tensor:
    return torch.bmm(left.double().mT, right.double())


def _close(found: Tensor, expected: Tensor) -> bool:
    difference = (found.cpu().double() - expected).abs().max()
    return bool(difference <= TOLERANCE * expected.abs().max())


def _require(is_right: bool, name: str, device: torch.device) -> None:
    if not is_right:
        raise KernelMismatchError(
            f"on {device} the {name} kernel did not give the known answer to a known problem, so nothing that it "
            "computes can be trusted; set HUSHGRAD_KERNELS=torch to do without kernels (or train on the CPU, if it is "
            "set), and report it with the versions of torch, Triton and the driver"
        )
