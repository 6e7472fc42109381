"""Why every kernel must first solve a known problem, and what happens if it fails.

A compiler, a driver or a device may be wrong, and no loss curve shows what noise a GPU adds. So before its first use on
a device, each kernel runs there on a known problem. The answers come from the same definitions in torch on the CPU,
which the test suite compares with RFC 8439 and with the oracle of the gradients.

Guarantee: a kernel that does not compute its definition on a device raises there before its first result is used.
"""

from __future__ import annotations

import torch

from hushgrad.errors import KernelMismatchError


def require_known_answer(is_given: bool, name: str, device: torch.device) -> None:
    """Raise `KernelMismatchError` unless the kernel of that name gave its known answer on the device."""
    if not is_given:
        raise KernelMismatchError(
            "it did not give the known answer to a known problem, so nothing that it computes can be trusted",
            where=f"the {name} kernel on {device}",
            cure="Set HUSHGRAD_KERNELS=torch to do without kernels (or train on the CPU, if it is set). Report it "
            "with the versions of torch, Triton and the driver",
        )
