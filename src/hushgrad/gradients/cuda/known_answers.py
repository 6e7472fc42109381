"""Known problems for the kernels that take norms, each run once for a device before its first use there."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hushgrad.kernels.known_answers import require_known_answer

# Sums of float32 products are this close to the truth; with TF32 they would not be.
TOLERANCE = 1e-5


@cache
def gram(device: torch.device, dtype: torch.dtype) -> None:
    """Take norms of a few matrices, one of them zero, on the device, and compare with float64."""
    from hushgrad.gradients.cuda.gram import norms

    left, right = _problem(dtype)
    norms_B = norms(left.to(device), right.to(device))
    is_right = _close(norms_B, _gradients(left, right).square().sum((1, 2)))
    require_known_answer(is_right, "Gram", device)


@cache
def instantiate(device: torch.device, dtype: torch.dtype) -> None:
    """Form the gradients of a few examples, one of them zero, and their norms on the device; compare with float64."""
    from hushgrad.gradients.cuda.instantiate import norms

    left, right = _problem(dtype)
    expected = _gradients(left, right)
    norms_B, gradients = norms(left.to(device), right.to(device), keep=True)
    without_gradients_B, _ = norms(left.to(device), right.to(device), keep=False)
    is_right = gradients is not None and _close(gradients, expected) and torch.equal(norms_B, without_gradients_B)
    require_known_answer(is_right and _close(norms_B, expected.square().sum((1, 2))), "gradient", device)


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
