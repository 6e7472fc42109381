"""One pass over a loader as its logical batches, each of which hands out its own items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hushgrad.errors import ProtocolError
from hushgrad.sampling.records import PhysicalBatch

Items = Iterator[tuple[Any, PhysicalBatch]]


class LogicalBatch:
    """The items of one logical batch, drawn as they are iterated over, once.

    A batch that is held before it is iterated over has drawn nothing: a loop may look one logical batch ahead.
    """

    def __init__(self, items: Items, before: LogicalBatch | None) -> None:
        self._items = items
        self._before = before
        self._state = "new"

    def __contains__(self, key: object) -> bool:
        """Nothing can be asked of it: a framework that looks for a name in its batch would draw it otherwise."""
        return False

    def __iter__(self) -> Iterator[Any]:
        """Yield its items.

        Raises:
            ProtocolError: it was iterated over before, or the one before it was not, to its end.
        """
        if self._state != "new":
            raise ProtocolError(
                "a logical batch is drawn once, and this one was iterated over before",
                cure="Go on with the next one; after an interrupt call session.discard() and begin a new pass",
            )
        if self._before is not None and self._before._state != "ended":
            raise ProtocolError(
                "the logical batch before this one was not iterated over to its end",
                cure="Take every item of each logical batch, in order. To leave one out call session.discard() and "
                "begin a new pass",
            )
        self._before, self._state = None, "begun"
        for item, batch in self._items:
            if batch.last:
                self._state = "ended"
            yield item
            if batch.last:
                return
        raise ProtocolError(
            "the loader's own batches ended before len(loader) of them were drawn",
            cure="Give batches a length that they keep, or steps_per_pass their number",
        )


def logical_batches(items: Items, count: int) -> Iterator[LogicalBatch]:
    """Yield `count` logical batches of one pass over `items`."""
    before = None
    for _ in range(count):
        before = LogicalBatch(items, before)
        yield before
