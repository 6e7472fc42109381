"""NumPy's handling of overflow and the like: accountants rely on its defaults, whatever the program has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def usual_floating_point() -> Iterator[None]:
    """Use NumPy's default error handling inside: a program's `np.seterr(all="raise")` then stops no accountant."""
    import numpy as np  # imported on use: a help text or a ledger does not need it

    with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"):
        yield
