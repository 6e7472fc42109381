"""When the probe looks again: at secret random batches, more often early than late, at some of the batch's calls.

Batch number t is looked at with probability min(1/2, 6/t). So what begins in the second half of a run of at least 40
batches is met by a look with probability 0.98, and a run of T batches has about 6·ln(T/12) + 6 looks.
"""

from __future__ import annotations

import math
import random

from hushgrad.randomness import Address, KeyStream

OFTEN = 6.0
"""Looks among the batches t to e·t."""

MOST_OFTEN = 0.5
"""The chance of a look at any of the first batches."""

BITS = 32
"""Bytes of secret bits for one batch."""


def chance(number: int) -> float:
    """Return the probability of a look at batch `number`, from 1."""
    return min(MOST_OFTEN, OFTEN / number)


def chance_of_missing(first: int, last: int) -> float:
    """Return the probability that none of the batches from `first` to `last` is looked at."""
    return math.prod(1 - chance(number) for number in range(first, last + 1))


class Looks:
    """Decides at which batches to look, and at which calls and examples of them.

    Guarantee: where nobody knows the session's key, nobody can tell before a batch whether it will be looked at.

    Args:
        stream: secret bits; None for never.
    """

    def __init__(self, stream: KeyStream | None) -> None:
        self._stream = stream
        self._number = 0
        self._random = random.Random(0)
        self.wanted = False
        """Whether the batch in work is looked at."""

    def draw_from(self, stream: KeyStream) -> None:
        """Take other secret bits, before the first batch."""
        self._stream = stream

    def stop(self) -> None:
        """Look no more: for benchmarks of an ordinary step."""
        self._stream, self.wanted = None, False

    def begin(self) -> None:
        """A batch begins."""
        self._number += 1
        if self._stream is None:
            return
        self._random = random.Random(bytes(self._stream.read(Address(self._number), BITS)))
        self.wanted = self._random.random() < chance(self._number)

    def place(self, count: int, most: int) -> int | None:
        """Return the place that the newest of `count` calls takes among `most`, each being as likely kept; or None."""
        if count <= most:
            return count - 1
        place = self._random.randrange(count)
        return place if place < most else None

    def some(self, size: int, most: int) -> list[int]:
        """Return some of `size` examples, at most so many, in random order."""
        return self._random.sample(range(size), min(size, most))
