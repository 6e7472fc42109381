"""New seeds for the generators of a process, before a framework writes their states beside a model.

How far a generator has gone shows what was drawn from it: with dropout, how many records the steps held.
"""

from __future__ import annotations

import os
import random

import numpy as np
import torch


def begin_generators_anew() -> None:
    """Seed Python's, NumPy's and torch's generators from the operating system: their states say nothing of before."""
    random.seed(os.urandom(32))
    np.random.seed(int.from_bytes(os.urandom(4), "big"))
    torch.manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)
