"""What the loader says about each item it hands out, and who is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from hushgrad.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class PhysicalBatch:
    """One item of the loader: a physical batch, all of a logical batch or a part of it.

    The first len(indices) rows of an item are the records drawn. Any rows after them are padding: real records, drawn
    uniformly, that contribute nothing. Which records were drawn, and how many, is secret: `indices` is not part of
    `repr`.

    Attributes:
        indices: the records drawn, ascending under Poisson sampling; empty where the item holds padding alone.
        size: the rows of the item, padding included; at least 1, because many models cannot run on no rows.
        weight: 0.0 where the item holds padding alone, else 1.0: whether the item contributes anything.
        step: the number of the logical batch. It grows over the life of the loader and is never used twice; numbers
            of logical batches that were drawn but never handed out are missing.
        pass_index: the number of the pass over the loader, from 0.
        first: whether the item begins its logical batch.
        last: whether the item ends its logical batch.
        extents: how much each record held before `collate_fn` made rows of them, padding included; as secret as
            `indices`. Empty where no collate function of the caller's changed them, and before they are read.
        owners: of each record drawn the number of its user, where whole users are drawn: those of one stand together,
            and in no other item. As secret as `indices`, and empty where records are drawn by themselves.
        records: the records themselves, by their index, where they cannot be read again (a stream's); else None.
    """

    indices: tuple[int, ...] = field(repr=False)
    size: int
    weight: float
    step: int
    pass_index: int
    first: bool
    last: bool
    extents: tuple[int, ...] = field(default=(), repr=False, compare=False)
    owners: tuple[int, ...] = field(default=(), repr=False)
    records: Mapping[int, Any] | None = field(default=None, repr=False, compare=False)


class BatchObserver(Protocol):
    """Follows the loader, item by item. A session is one: it enforces the protocol of the loop."""

    def before_draw(self) -> None:
        """Called before the loader reads anything for its next item, also at the end of a pass.

        Raises when the loop did not finish with the item before, and the loader then reads nothing.
        """

    def begin(self, batch: PhysicalBatch, item: Any) -> None:
        """Called just before the item described by `batch` is handed to the loop; `item` is what it will get."""

    def lost(self, batch: PhysicalBatch) -> None:
        """Called when the records of `batch` were drawn and cannot be handed out: reading them failed."""


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a logical batch is cut into items, in public numbers.

    Attributes:
        max_rows: the most rows in one item; None for all records in one item.
        constant_rows: whether every item has exactly `max_rows` rows, the missing ones filled with padding.
        items: how many items every logical batch has (those that no record is left for hold padding alone); None for
            as many as its records need, at least one.
    """

    max_rows: int | None = None
    constant_rows: bool = False
    items: int | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of each logical batch one process takes, where several train one model: every `of`-th record.

    The draw is one, known to all. So q, B and ε do not depend on how many processes there are, and all of them have
    equally many items without asking each other.

    Attributes:
        rank: of the process, from 0.
        of: how many there are.
    """

    rank: int = 0
    of: int = 1


WHOLE = Share()


def cut(
    indices: tuple[int, ...],
    cutting: Cutting,
    step: int,
    pass_index: int,
    share: Share = WHOLE,
    owners: Sequence[int] | None = None,
) -> list[PhysicalBatch]:
    """Return the physical batches of a logical batch, in order: those of one process, where several share it.

    `owners` are the users of the indices, where whole users are drawn: those of one stand together. One process has
    all of them then.

    Guarantee: the physical batches partition the logical batch, and the last one alone is marked `last`.
    Guarantee: with `constant_rows` every item has `max_rows` rows, and with `items` every logical batch as many items,
    whatever was drawn.
    Guarantee: the shares of all processes partition the logical batch, in equally many items.
    Guarantee: the records of one user are in one item.
    """
    if owners is not None:
        return _cut_between_users(indices, owners, cutting, step, pass_index)
    most = -(-len(indices) // share.of)  # of any process: all know it
    indices = indices[share.rank :: share.of]
    rows = cutting.max_rows or max(1, most)
    needed = max(1, -(-most // rows))
    count = cutting.items or needed
    if count < needed:
        raise InvalidArgumentError(
            f"a logical batch must have at most {count} x {rows} records", cure="Cut it into more items"
        )
    parts = [indices[place * rows : (place + 1) * rows] for place in range(count)]
    return _items(parts, [()] * count, cutting, step, pass_index)


def _cut_between_users(
    indices: tuple[int, ...], owners: Sequence[int], cutting: Cutting, step: int, pass_index: int
) -> list[PhysicalBatch]:
    """Return items of as many users as have room in each, in their order."""
    most = cutting.max_rows or max(1, len(indices))
    bounds, begins = [0], 0
    for place in range(1, len(indices) + 1):
        if place < len(indices) and owners[place] == owners[place - 1]:
            continue  # no user ends here
        if place - bounds[-1] > most:
            bounds.append(begins)
        begins = place
    parts = [slice(start, end) for start, end in pairwise([*bounds, len(indices)])]
    if any(part.stop - part.start > most for part in parts):
        raise InvalidArgumentError(
            f"a user has more than the {most} records of an item", cure="Raise max_physical_batch_size"
        )
    return _items([indices[part] for part in parts], [tuple(owners[part]) for part in parts], cutting, step, pass_index)


def _items(
    parts: Sequence[tuple[int, ...]],
    owners: Sequence[tuple[int, ...]],
    cutting: Cutting,
    step: int,
    pass_index: int,
) -> list[PhysicalBatch]:
    return [
        PhysicalBatch(
            indices=part,
            size=cutting.max_rows if cutting.constant_rows and cutting.max_rows else max(1, len(part)),
            weight=1.0 if part else 0.0,
            step=step,
            pass_index=pass_index,
            first=place == 0,
            last=place == len(parts) - 1,
            owners=of_users,
        )
        for place, (part, of_users) in enumerate(zip(parts, owners, strict=True))
    ]
