"""The processes that train one model together, read from `torch.distributed`. One process alone is a world, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from hushgrad.errors import PeerFailedError
from hushgrad.torch_internals import timeout_of


@dataclass(frozen=True, eq=False)
class World:
    """What one process knows of the others.

    Attributes:
        rank: its own number, from 0.
        size: how many there are.
        control: the group for small messages on CPUs, which nobody else uses; None for one process.
        data: the group that sums are added up over; None for one process.
    """

    rank: int = 0
    size: int = 1
    control: Any = None
    data: Any = None

    @property
    def is_alone(self) -> bool:
        """Whether there is one process only."""
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the ledger: the one of rank 0."""
        return self.rank == 0


ALONE = World()


def processes() -> int:
    """Return how many processes `torch.distributed` joins; 1 where it was not begun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def join_world() -> World:
    """Return the world of this process. With several processes, all of them have to call it.

    Raises `PeerFailedError` where one does not come within the timeout that `torch.distributed` was begun with.
    """
    if processes() == 1:
        return ALONE
    known = _joined.get("world")
    if known is None or known.data is not dist.group.WORLD:
        # Of its own, so that no message of ours meets one of the loop's or of DistributedDataParallel's.
        try:
            control = dist.new_group(backend="gloo", timeout=timeout_of(dist.group.WORLD))
        except RuntimeError as error:
            raise PeerFailedError(
                f"the other processes could not be reached ({type(error).__name__})",
                where="torch.distributed",
                cure="Start all processes again, each with the same program: every one of them makes the model private",
            ) from error
        known = _joined["world"] = World(rank(), processes(), control, dist.group.WORLD)
    return known


_joined: dict[str, World] = {}
"""The world that this process has joined."""
