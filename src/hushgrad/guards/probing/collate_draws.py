"""How random numbers come while a collate function is asked again.

Numbers of torch can be made constants. Those of Python, NumPy and a generator of the function's own cannot: what draws
until a number fits would draw for ever. So such a function is handed a list that puts all generators to the beginning
of one sequence whenever a record is taken from it: a loop over records draws the same for each of them, whatever its
companions are. What is drawn for the whole batch at once is the same for the first record.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hushgrad.guards.probing.state_values import copy_of

SEQUENCES, LATER = 5, 2
"""A function that draws is compared with so many sequences of numbers: it may mix in some of its batches only."""


@dataclass(frozen=True)
class Draws:
    """How random numbers come in a run.

    Attributes:
        quiet: whether torch's random operators give constants.
        anew: the seed that all generators get whenever a record is taken; None where they go on.
    """

    quiet: bool = False
    anew: int | None = None


AS_DRAWN, QUIET = Draws(), Draws(quiet=True)


def sequences(turn: int) -> Iterator[Draws]:
    """Yield the manners in which a function that draws outside of torch is compared in its examination `turn`."""
    return (Draws(quiet=True, anew=turn * SEQUENCES + number) for number in range(LATER if turn else SEQUENCES))


class Taken(list[Any]):
    """A list of records that calls `begin` before a record is taken from it, and after the last one of a loop."""

    def __init__(self, records: Iterable[Any] = (), begin: Callable[[], None] = lambda: None) -> None:
        super().__init__(records)
        self.begin = begin

    def __iter__(self) -> Iterator[Any]:
        """Yield the records."""
        return self._each(super().__iter__())

    def __reversed__(self) -> Iterator[Any]:
        """Yield the records from the last one on."""
        return self._each(super().__reversed__())

    def __getitem__(self, place: Any) -> Any:
        """Return a record, or some of them."""
        self.begin()
        found = super().__getitem__(place)
        return Taken(found, self.begin) if isinstance(place, slice) else found

    def pop(self, *place: Any) -> Any:
        """Take a record away."""
        self.begin()
        return super().pop(*place)

    def copy(self) -> Taken:
        """Return a list of the same records."""
        return Taken(super().__iter__(), self.begin)

    def _each(self, records: Iterator[Any]) -> Iterator[Any]:
        for record in records:
            self.begin()
            yield record
        self.begin()


def seeded(generator: Any, seed: int) -> Any:
    """Return the state of a generator at the beginning of a sequence of numbers; it is left as it is."""
    if isinstance(generator, torch.Generator):
        return torch.Generator(generator.device).manual_seed(seed).get_state()
    if isinstance(generator, random.Random):
        return random.Random(seed).getstate()
    is_old = isinstance(generator, np.random.RandomState)
    kind: Any = type(generator._bit_generator if is_old else generator.bit_generator)
    return copy_of((np.random.RandomState if is_old else np.random.Generator)(kind(seed)))
