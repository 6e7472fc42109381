"""Sums of several processes become one, with noise in it before anything leaves a process.

Each process adds noise to its own slice of its own sums, and then all sums are added up, one while the noise of the
next is drawn. So every value has noise from one draw, by the process that owns it; the work of drawing is shared out;
no key is shared; and a sum over the examples of all processes never exists without noise. On the wire, sums of single
processes are in part without noise: the processes and their wire are one domain of trust.

Sums of a sharded model may be scattered before (`session/scattered.py`): then each process has a part of the sum of all
in its memory until it adds noise to it, as a single process has all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor

from hushgrad.parallel.messages import unreachable
from hushgrad.parallel.world import World


def own_slice(world: World, flat: Tensor) -> Tensor:
    """Return the part of a flat sum that this process adds noise to: a view. Parts differ by at most one value.

    Guarantee: the slices of all processes are disjoint, and together they are the whole.
    """
    count = flat.numel()
    first, last = count * world.rank // world.size, count * (world.rank + 1) // world.size
    return flat[first:last]


class Outgoing(Protocol):
    """A sum that is about to be added up over processes.

    Attributes:
        values: all that this process hands over.
        part: what of it this process adds noise to: a view.
        own: what it has when all have come: its own part of the sum of all, or the whole.
    """

    values: Tensor
    part: Tensor
    own: Tensor

    def send(self) -> None:
        """Begin to hand it over."""

    def wait(self) -> None:
        """Return when it has come from all others."""


class Reduction:
    """A sum that all processes of a world have, and get the same bits of."""

    def __init__(self, world: World, values: Tensor) -> None:
        self.values = self.own = values
        self.part = own_slice(world, values.view(-1))
        self._world = world
        self._work: Any = None

    def send(self) -> None:
        """Begin to hand it over."""
        if not self._world.is_alone:
            self._work = dist.all_reduce(self.values, group=self._world.data, async_op=True)

    def wait(self) -> None:
        """Return when it has come from all others."""
        if self._work is not None:
            self._work.wait()


def add_up(sums: Sequence[Outgoing], prepare: Callable[[int], None]) -> None:
    """Add up sums of all processes.

    Each is handed over once it was prepared, while the next one is, and no more than two are on their way. Where that
    fails, it and those after it are handed over as NaN, so that nobody waits for them and no sum is of use, and the
    error is raised at the end.

    Args:
        sums: the same in all processes.
        prepare: puts this process's noise into the sum at a place.

    Raises `PeerFailedError` where a process is gone.
    """
    failure: Exception | None = None
    try:
        for place, total in enumerate(sums):
            if failure is None:
                try:
                    prepare(place)
                except Exception as error:
                    failure = error
            if failure is not None:
                total.values.fill_(math.nan)
            total.send()
            if place:
                sums[place - 1].wait()
        for total in sums[-1:]:
            total.wait()
    except RuntimeError as error:
        raise unreachable(f"the sums could not be added up ({type(error).__name__})") from error
    if failure is not None:
        raise failure
