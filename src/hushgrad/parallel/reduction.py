"""Sums of several processes become one, with noise in it before anything leaves a process.

Each process adds noise to its own slice of its own sums, and then all sums are added up, one while the noise of the
next is drawn. So every value has noise
from one draw, by the process that owns it; the work of drawing is shared out; no key is shared; and a sum over the
examples of all processes never exists without noise. On the wire, sums of single processes are in part without noise:
the processes and their wire are one domain of trust.
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


class Work(Protocol):
    """A message that is on its way."""

    def wait(self) -> Any:
        """Return when it has come."""


def all_reduced(world: World, flat: Tensor) -> Work | None:
    """Begin to replace a tensor by the sum of those of all processes: the same bits everywhere."""
    return None if world.is_alone else dist.all_reduce(flat, group=world.data, async_op=True)


def add_up(flats: Sequence[Tensor], prepare: Callable[[int], None], hand_over: Callable[[int], Work | None]) -> None:
    """Add up tensors of all processes.

    Each is handed over once it was prepared, while the next one is. Where that fails, it and those after it are handed
    over as NaN, so that nobody waits for them and no sum is of use, and the error is raised at the end.

    Args:
        flats: contiguous tensors.
        prepare: puts this process's noise into the tensor at a place.
        hand_over: begins to send it.

    Raises `PeerFailedError` where a process is gone.
    """
    failure: Exception | None = None
    works: list[Work | None] = []
    try:
        for place, flat in enumerate(flats):
            if failure is None:
                try:
                    prepare(place)
                except Exception as error:
                    failure = error
            if failure is not None:
                flat.fill_(math.nan)
            works.append(hand_over(place))
        for work in works:
            if work is not None:
                work.wait()
    except RuntimeError as error:
        raise unreachable(f"the sums could not be added up ({type(error).__name__})") from error
    if failure is not None:
        raise failure
