"""Seeds that a forward has set: what is drawn after it, in later batches and by the loop, follows from them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch

WORDS = 624
"""How many numbers of 32 bits a Mersenne twister makes at a time."""

BLOCKS = 200
"""How many times that many numbers a forward may draw from Python's or NumPy's generator."""

Seeds = tuple[Any, ...]


def seeds_left(devices: Sequence[torch.device], seed: int) -> Seeds:
    """Return by what torch, Python and NumPy are seeded now, where that is not `seed` any more; else None for each.

    Torch tells its seed. Of Python and NumPy it is told whether their state comes from `seed` by drawing.
    """
    now: list[Any] = [torch.default_generator.initial_seed()]
    for index in sorted({device.index or 0 for device in devices if device.type == "cuda"}):
        now.append(torch.cuda.default_generators[index].initial_seed())
    found: list[Any] = [None if value == seed else value for value in now]
    python = random.getstate()[1][:WORDS]
    found.append(None if python in _drawn_from(seed, False) or _is_drawn_later(python, seed, False) else hash(python))
    state: Any = np.random.get_state(legacy=False)
    numpy = state["state"]["key"].tobytes()
    found.append(None if numpy in _drawn_from(seed, True) or _is_drawn_later(numpy, seed, True) else hash(numpy))
    return tuple(found)


@lru_cache(maxsize=8)
def _drawn_from(seed: int, is_numpy: bool) -> frozenset[Any]:
    """Return the first states that drawing from a seed gives."""
    return frozenset(islice(_states(seed, is_numpy), 2))


def _is_drawn_later(state: Any, seed: int, is_numpy: bool) -> bool:
    return any(state == drawn for drawn in islice(_states(seed, is_numpy), BLOCKS))


def _states(seed: int, is_numpy: bool) -> Iterator[Any]:
    if is_numpy:
        numpy = np.random.RandomState(seed)
        while True:
            state: Any = numpy.get_state(legacy=False)
            yield state["state"]["key"].tobytes()
            numpy.bytes(4 * WORDS)
    python = random.Random(seed)
    while True:
        yield python.getstate()[1][:WORDS]
        python.getrandbits(32 * WORDS)
