"""NumPy's global random generator: kept and put back, whatever kind of generator it was set to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.random import mtrand


@contextmanager
def kept_generator() -> Iterator[None]:
    """Give NumPy's global generator back as it was; meanwhile it is one that `np.random.seed` can seed."""
    own, state = mtrand.get_bit_generator(), np.random.get_state(legacy=False)
    if not isinstance(own, np.random.MT19937):
        mtrand.set_bit_generator(np.random.MT19937())
    try:
        yield
    finally:
        if mtrand.get_bit_generator() is not own:
            mtrand.set_bit_generator(own)
        np.random.set_state(state)


def begin_anew() -> None:
    """Seed the global generator from the operating system; it stays of its kind."""
    seed = int.from_bytes(os.urandom(4), "big")
    kind = type(mtrand.get_bit_generator())
    if kind is np.random.MT19937:
        np.random.seed(seed)
    else:
        mtrand.set_bit_generator(kind(seed))
