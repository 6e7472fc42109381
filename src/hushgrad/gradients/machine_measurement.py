"""Measures what arithmetic and memory cost on a device: the constants by which ways are chosen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

import torch

from hushgrad.gradients.contribution import Plan
from hushgrad.gradients.convolution import Convolution, Geometry, unfold
from hushgrad.gradients.machine import CPU, GPU, Machine
from hushgrad.gradients.outer import OuterProducts

REPEATS = 15
SHARE_OF_FREE_MEMORY = 8


def measure_machine(device: torch.device) -> Machine:
    """Return the constants of a device, with as many threads as torch has now; takes a second or two.

    Shapes are those of layers of medium size. Times are medians.
    """
    outer = OuterProducts(torch.randn(16, 128, 512, device=device), torch.randn(16, 128, 256, device=device))
    few = OuterProducts(torch.randn(64, 32, 512, device=device), torch.randn(64, 32, 256, device=device))
    geometry = Geometry((128, 128, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    images = torch.randn(16, 128, 16, 16, device=device)
    convolution = Convolution(images, torch.randn_like(images), geometry)
    blocks = torch.randn(16, 18, 18, 18, 18, device=device)
    left, right = outer.left.flatten(0, 1).mT, outer.right.flatten(0, 1)

    def nanoseconds(action: Callable[[], object]) -> float:
        return _nanoseconds(action, device)

    weights = torch.rand(16, device=device)

    def kept(part: OuterProducts | Convolution) -> float:
        """Return by how much forming, measuring and summing gradients takes longer than the sum in one product."""
        plan = Plan("instantiate", keep_bytes=1 << 40)
        formed = nanoseconds(lambda: part.measure(plan)[1].weighted_sum(weights))
        return max(0.0, formed - nanoseconds(lambda: part.weighted_sum(weights)))

    return Machine(
        multiply_add=nanoseconds(lambda: left @ right) / (16 * 128 * 512 * 256),
        gram_multiply_add=nanoseconds(lambda: few.measure(Plan("gram"))) / (64 * 32**2 * (512 + 256)),
        formed=kept(outer) / (16 * 512 * 256),
        convolved=kept(convolution) / (16 * 128 * 128 * 9),
        unfolded=nanoseconds(lambda: unfold(images, geometry, torch.Size((16, 16)))) / (16 * 256 * 128 * 9),
        moved=nanoseconds(lambda: _corner(blocks, 0) + _corner(blocks, 2)) / (16 * 16**4),
        keep_bytes=_free_bytes(device) // SHARE_OF_FREE_MEMORY,
        sum_bytes=(CPU if device.type == "cpu" else GPU).sum_bytes,  # what is free now says nothing of the other ones
        operand_bytes=CPU.operand_bytes,  # a choice between memory and time, which is not measured
    )


def _corner(blocks: torch.Tensor, shift: int) -> torch.Tensor:
    return blocks[:, shift : shift + 16, :16, shift : shift + 16, :16]


def _nanoseconds(action: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS + 2):
        _wait(device)
        began = time.perf_counter_ns()
        action()
        _wait(device)
        times.append(time.perf_counter_ns() - began)
    return median(times[2:])


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _free_bytes(device: torch.device) -> int:
    """Return how much memory is free; where the system does not tell, the amount that gives the shipped budget."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return SHARE_OF_FREE_MEMORY * CPU.keep_bytes
