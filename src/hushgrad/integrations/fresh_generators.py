"""New seeds for the generators of a process, before a framework writes their states beside a model.

How far a generator has gone shows what was drawn from it: with dropout, how many records the steps held.
"""

from __future__ import annotations

import os
import random

import torch

from hushgrad import numpy_generator


def begin_generators_anew() -> None:
    """Seed Python's, NumPy's and torch's generators from the operating system: their states say nothing of before."""
    random.seed(os.urandom(32))
    numpy_generator.begin_anew()
    torch.manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)
