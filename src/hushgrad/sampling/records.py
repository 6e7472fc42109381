"""What the loader says about each item it hands out, and who is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PhysicalBatch:
    """One item of the loader: a physical batch, all of a logical batch or a part of it.

    Which records were drawn is secret: `indices` is not part of `repr`.

    Attributes:
        indices: the records drawn, ascending under Poisson sampling; empty for an empty draw.
        size: the rows of the item, max(1, len(indices)): an empty draw is handed out as one record of weight 0.
        weight: 0.0 for an empty draw, else 1.0; the factor on every row's contribution.
        step: the number of the logical batch. It grows over the life of the loader and is never used twice; numbers
            of logical batches that were drawn but never handed out are missing.
        pass_index: the number of the pass over the loader, from 0.
        first: whether the item begins its logical batch.
        last: whether the item ends its logical batch.
    """

    indices: tuple[int, ...] = field(repr=False)
    size: int
    weight: float
    step: int
    pass_index: int
    first: bool
    last: bool


class BatchObserver(Protocol):
    """Follows the loader, item by item. A session is one: it enforces the protocol of the loop."""

    def before_draw(self) -> None:
        """Called before the loader reads anything for its next item, also at the end of a pass.

        Raises when the loop did not finish with the item before, and the loader then reads nothing.
        """

    def begin(self, batch: PhysicalBatch) -> None:
        """Called just before the item described by `batch` is handed to the loop."""


def cut(
    indices: tuple[int, ...], max_physical_batch_size: int | None, step: int, pass_index: int
) -> list[PhysicalBatch]:
    """Return the physical batches of a logical batch, in order.

    Guarantee: the physical batches partition the logical batch, and the last one alone is marked `last`.
    """
    if not indices:
        return [PhysicalBatch((), 1, 0.0, step, pass_index, first=True, last=True)]
    size = max_physical_batch_size or len(indices)
    starts = range(0, len(indices), size)
    return [
        PhysicalBatch(
            indices=(part := indices[start : start + size]),
            size=len(part),
            weight=1.0,
            step=step,
            pass_index=pass_index,
            first=start == 0,
            last=start == starts[-1],
        )
        for start in starts
    ]
