"""What an ε means, in plain sentences: what an attacker gains at most, and where it lies among usual values."""

from __future__ import annotations

import math

from hushgrad.accounting.composition import Composition
from hushgrad.accounting.guarantee import Guarantee, round_up
from hushgrad.accounting.risk import membership_advantage, true_positive_rate
from hushgrad.errors import AccountingError

STRONG, REASONABLE = 1.0, 10.0
"""The bounds of Ponomareva et al. (2023), "How to DP-fy ML", arXiv:2303.00654."""

FALSE_ALARMS = 0.01


def in_plain_words(held: Guarantee, events: Composition) -> tuple[str, ...]:
    """Return sentences on a guarantee for a reader who knows no ε; none where nothing is guaranteed.

    Args:
        held: the guarantee.
        events: what it was computed from; who attacks gains at most what `hushgrad.accounting.risk` computes from it.
    """
    if not math.isfinite(held.epsilon):
        return ()
    return (*_attacker(held, events), _usual(held.epsilon))


def _attacker(held: Guarantee, events: Composition) -> tuple[str, ...]:
    try:
        right = (1 + membership_advantage(events)) / 2
        found = true_positive_rate(events, FALSE_ALARMS)
    except AccountingError:  # not computed for this kind of account: nothing is said in place of it
        return ()
    return (
        f"Somebody who knows all other records and sees every step of training guesses whether {held.unit} took part: "
        f"right at most {percent_up(right)} of the time (a coin: 50%). At {FALSE_ALARMS:.0%} false alarms at most "
        f"{percent_up(found)} of those who did are found.",
    )


def _usual(epsilon: float) -> str:
    kind = "strong" if epsilon <= STRONG else "reasonable" if epsilon <= REASONABLE else "weak"
    return (
        f"Among usual values: ε up to {STRONG:g} counts as strong, up to {REASONABLE:g} as reasonable, beyond as weak "
        f"(How to DP-fy ML, arXiv:2303.00654): {round_up(epsilon, 3)} is {kind}."
    )


def percent_up(share: float) -> str:
    """Return a share in [0, 1] as a percentage that is rounded up to three digits, never down."""
    return f"{round_up(100 * share, 3)}%"
