"""The caller's own batches, the same in all processes: those of the first one."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence

from hushgrad.errors import UnsupportedSamplerError
from hushgrad.parallel.messages import told_by_first
from hushgrad.parallel.world import World


class BatchesOfFirst:
    """Batches of indices, iterated over anew in every pass; samplers of other processes would draw others."""

    def __init__(self, world: World, batches: Iterable[Sequence[int]]) -> None:
        self._world, self._batches = world, batches

    def __iter__(self) -> Iterator[Sequence[int]]:
        if self._world.is_alone:
            yield from self._batches
            return
        yield from told_by_first(self._world, "batches of a pass", lambda: list(map(_whole, self._batches)))


def _whole(batch: Sequence[int]) -> list[int]:
    try:
        return list(map(operator.index, batch))
    except TypeError:
        raise UnsupportedSamplerError(
            "a batch of the sampler must be a sequence of whole numbers", cure="Give indices into the dataset"
        ) from None
