"""NumPy's way with overflow and the like: the accountants count on its defaults, whatever a program has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def usual_floating_point() -> Iterator[None]:
    """Compute as NumPy does unless told otherwise; `np.seterr(all="raise")` of a program then stops no accountant."""
    import numpy as np  # imported on use: a help text or a ledger does not need it

    with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"):
        yield
