"""How much of the processors other programs took while something was measured.

The kernel counts how long each processor was busy, and how long this process and its children were. What is busy beyond
them is somebody else: another program, or another machine on the same hardware ("steal"). Linux only.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

STAT = Path("/proc/stat")

# Above this share of the processors, what others do is said beside the figures.
NOTABLE_SHARE = 0.05

# Columns of /proc/stat after the name (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal.
_BUSY_COLUMNS = (0, 1, 2, 5, 6, 7)


def busy_seconds(stat: str, processors: frozenset[int], ticks_per_second: float) -> float:
    """Return how long some processors were busy since the system began, by the text of /proc/stat."""
    names = {f"cpu{number}" for number in processors}
    ticks = 0
    for line in stat.splitlines():
        name, *columns = line.split()
        if name in names:
            ticks += sum(int(columns[place]) for place in _BUSY_COLUMNS if place < len(columns))
    return ticks / ticks_per_second


def share_of_others(busy: float, own: float, seconds: float, processors: int) -> float | None:
    """Return the share of the processors' time that others took, or None where the system doesn't count ours either."""
    if seconds <= 0 or busy < 0.5 * own:
        return None
    return max(0.0, busy - own) / (seconds * processors)


class Watch:
    """Counts from its construction on. Children count when they have ended and were waited for."""

    def __init__(self) -> None:
        self._processors = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
        self._started = time.monotonic()
        self._busy, self._own = self._counted()

    def share(self) -> float | None:
        """Return the share of the processors that others took since this watch began; None where it isn't known."""
        busy, own = self._counted()
        seconds = time.monotonic() - self._started
        return share_of_others(busy - self._busy, own - self._own, seconds, max(1, len(self._processors)))

    def _counted(self) -> tuple[float, float]:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own = sum(part.ru_utime + part.ru_stime for part in used)
        if not STAT.exists():
            return 0.0, own
        return busy_seconds(STAT.read_text(), self._processors, os.sysconf("SC_CLK_TCK")), own
