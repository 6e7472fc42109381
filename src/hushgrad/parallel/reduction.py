"""Sums of several processes become one, with noise in it before anything leaves a process.

Each process adds noise to its own slice of its own sums, and then all sums are added up. So every value has noise
from one draw, by the process that owns it; the work of drawing is shared out; no key is shared; and a sum over the
examples of all processes never exists without noise. On the wire, sums of single processes are in part without noise:
the processes and their wire are one domain of trust.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from hushgrad.errors import PeerFailedError
from hushgrad.parallel.messages import LOST
from hushgrad.parallel.world import World


def own_slice(world: World, flat: Tensor) -> Tensor:
    """Return the part of a flat sum that this process adds noise to: a view. Parts differ by at most one value.

    Guarantee: the slices of all processes are disjoint, and together they are the whole.
    """
    count = flat.numel()
    first, last = count * world.rank // world.size, count * (world.rank + 1) // world.size
    return flat[first:last]


def add_up(world: World, flats: Sequence[Tensor]) -> None:
    """Replace each tensor by the sum of those of all processes: the same bits everywhere.

    Raises `PeerFailedError` where a process is gone.
    """
    if world.is_alone:
        return
    try:
        for work in [dist.all_reduce(flat, group=world.data, async_op=True) for flat in flats]:
            work.wait()
    except RuntimeError as error:
        raise PeerFailedError(
            f"the sums could not be added up ({type(error).__name__})", where="torch.distributed", cure=LOST
        ) from error
