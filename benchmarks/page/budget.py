"""How the time is divided: which workload gets how much, how many rounds fit, and who is left out of a share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from benchmarks.timing import FEWEST_ROUNDS

GROWTH_SHARE = 0.12  # of the whole time
LONGEST_PART = 0.6  # of a workload's time for the first allocator, which also asks who can take part
MOST_ROUNDS = 40  # what a light workload doesn't need is there for the heavy ones

LIGHT_FIRST = ("cnn", "linear400", "mlp", "lora", "encoder", "resnet-gn", "decoder-1024", "decoder-256")
"""By the time of a round of all contestants."""


@dataclass(frozen=True)
class Rounds:
    """What fits into a share of the time.

    Attributes:
        count: rounds to record.
        left_out: seconds of one step of each contestant that is left out, because not even the fewest rounds would fit.
    """

    count: int
    left_out: dict[str, float]


def in_order(workloads: Iterable[str]) -> list[str]:
    """Return the workloads such that what the light ones leave is divided among the heavy ones."""
    places = {name: place for place, name in enumerate(LIGHT_FIRST)}
    return sorted(workloads, key=lambda name: places.get(name, len(places)))


def rounds_within(seconds: float, step_seconds: Mapping[str, float], must_stay: Collection[str]) -> Rounds:
    """Return how many rounds of one step each fit, leaving out the slowest while the fewest rounds do not.

    Those in `must_stay` are not left out, nor is the fastest of the others: a page on which hushgrad stands alone
    compares nothing. So the fewest rounds can take longer than the seconds.
    """
    staying = dict(step_seconds)
    left_out = {}
    while sum(staying.values()) * FEWEST_ROUNDS > seconds:
        others = [name for name in staying if name not in must_stay]
        if len(others) <= 1:
            break
        slowest = max(others, key=lambda name: staying[name])
        left_out[slowest] = staying.pop(slowest)
    fitting = int(seconds / max(sum(staying.values()), 1e-9))
    return Rounds(max(FEWEST_ROUNDS, min(MOST_ROUNDS, fitting)), left_out)
