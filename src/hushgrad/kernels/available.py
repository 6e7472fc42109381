"""Whether kernels can run here, which takes Triton.

`HUSHGRAD_KERNELS=torch` in the environment switches kernels off; noise then has the same values. What runs in a kernel
is decided next to what it computes (`hushgrad.gradients.cuda.dispatch`, `hushgrad.noise.cuda.dispatch`), and never on
the CPU. Neither Triton nor a kernel is imported before it is used.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

from hushgrad.arguments import one_of

VARIABLE = "HUSHGRAD_KERNELS"


@cache
def has_kernels() -> bool:
    """Say whether Triton can be imported and is not switched off; the answer stays for the process."""
    choice = one_of(VARIABLE, os.environ.get(VARIABLE, "triton"), ("triton", "torch"))
    return choice == "triton" and importlib.util.find_spec("triton") is not None
