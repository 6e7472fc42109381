"""What all runs of a sweep have cost together, and what an honest choice among them would."""

from __future__ import annotations

import math
from collections.abc import Iterable

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.composition import Composition, of_accounts
from hushgrad.accounting.selection import GEOMETRIC, selection_epsilon
from hushgrad.errors import AccountingError


def all_together(accounts: Iterable[Composition], delta: float) -> float:
    """Return ε of all ledgers together; infinite where none holds for all (different neighbouring relations)."""
    try:
        return epsilon(of_accounts(accounts), delta)
    except AccountingError:
        return math.inf


def drawn_number(account: Composition, delta: float, runs: int) -> float:
    """Return ε of publishing the best of a random number of runs like one, geometric with `runs` on average.

    Infinite where it is not computed: for truncated and fixed-size sampling, and under a filter.
    """
    try:
        return selection_epsilon(account, delta, runs, GEOMETRIC)
    except AccountingError:
        return math.inf
