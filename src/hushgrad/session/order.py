"""Where a training loop stands: loader item, backward, the end of the item, optimizer.step, in this order.

Holds no tensors and knows no model: it only says which of them may come next.
"""

from __future__ import annotations

from itertools import groupby

from hushgrad.errors import DuplicateRecordError, ProtocolError
from hushgrad.sampling.records import PhysicalBatch


class ObservedOrder:
    """The order of a loop over a private loader: the item in work, and the logical batch that is open.

    `optimizer.step()` ends the item in work, and with the last one its logical batch. A loop that calls `end_item` for
    each item calls `optimizer.step()` once, when the logical batch is complete.
    """

    def __init__(self) -> None:
        self.item: PhysicalBatch | None = None
        self.complete: PhysicalBatch | None = None
        """The last item of a logical batch that waits for its step."""
        self._open_step: int | None = None
        self._is_adding = False
        self._is_lost = False
        self._users: set[int] = set()  # of the logical batch that is open

    @property
    def is_open(self) -> bool:
        """Whether a logical batch was begun and has not ended."""
        return self._open_step is not None

    def before_draw(self) -> None:
        """Refuse to read on before the loop has finished with the last item."""
        if self._is_lost:
            raise ProtocolError(
                "the next batch was asked for after the records of the last one could not be read or collated: a loop "
                "that goes on without it lets one record decide how many steps run",
                cure="Let the dataset return a constant record where one cannot be read, and mend collate_fn. To drop "
                "that batch all the same call session.discard(), which every guarantee then tells",
            )
        if self.item is not None:
            raise ProtocolError(
                "the next batch was asked for before optimizer.step() was called for the last one",
                cure="For every item of the loader: backward, then optimizer.step() (or session.end_item(), and "
                "optimizer.step() once at the end of each logical batch). To accumulate gradients over k batches of b "
                "records, call optimizer.step() after each of them all the same, and give the DataLoader "
                "batch_size=k*b with max_physical_batch_size=b, or make_private(accumulation=k): the last step of a "
                "logical batch alone updates. After an interrupt call session.discard()",
            )
        if self.complete is not None:
            raise ProtocolError(
                "the next batch was asked for before optimizer.step() was called for a logical batch whose items have "
                "all ended",
                cure="Call optimizer.step() once after the last item of each logical batch. After an interrupt call "
                "session.discard()",
            )

    def begin(self, batch: PhysicalBatch) -> None:
        """Take the item that the loop is about to get.

        Raises:
            ProtocolError: it does not follow the last one.
            DuplicateRecordError: it parts the records of a user.
        """
        if batch.first and self._open_step is not None:
            raise ProtocolError(
                "a new logical batch begins before the last one ended: the loop was left in its middle",
                cure="Call session.discard() before iterating again",
            )
        if not batch.first and self._open_step != batch.step:
            raise ProtocolError(
                "the rest of a logical batch came after it was discarded", cure="Iterate over the loader anew"
            )
        self._require_whole_users(batch)
        self.item, self._open_step = batch, batch.step

    def _require_whole_users(self, batch: PhysicalBatch) -> None:
        """Refuse a part of a user's records: each part would be clipped by itself, and all of them add up."""
        if batch.first:
            self._users = set()
        users = [owner for owner, _ in groupby(batch.owners)]
        if len(set(users)) < len(users) or not self._users.isdisjoint(users):
            raise DuplicateRecordError(
                "the records of one user came in two parts of a logical batch: each would be clipped by itself",
                cure="Let one item hold all records of a user, one behind the other",
            )
        self._users.update(users)

    def lose(self) -> None:
        """The records of an item could not be handed out."""
        self._is_lost = True

    def require_item(self) -> PhysicalBatch:
        """Return the item in work."""
        if self.item is None:
            raise ProtocolError(
                "there is no batch to work on: this item of the private loader was ended already, or none was read yet",
                cure="Run every backward between an item and its optimizer.step() (or session.end_item(), after "
                "which optimizer.step() is called once for each logical batch)",
            )
        if self._is_adding:
            raise ProtocolError(
                "the end of this item was interrupted while it was added to its logical batch, and a second time "
                "would count its records twice",
                cure="Call session.discard() and iterate over the loader anew",
            )
        return self.item

    def start_adding(self) -> None:
        """The item's sum is about to be added; until `end_item` nobody knows whether it was."""
        self.require_item()
        self._is_adding = True

    def end_item(self) -> None:
        """The item was added; after the last one its logical batch is complete and waits for its step."""
        if self.item is not None and self.item.last:
            self.complete = self.item
        self.item, self._is_adding = None, False

    def end_logical_batch(self) -> PhysicalBatch:
        """Return the last item of the logical batch that is complete; it is about to be released."""
        if self.complete is None:
            self.require_item()
            raise ProtocolError("the logical batch is not complete", cure="End its items first")
        last, self.complete, self._open_step = self.complete, None, None
        return last

    def discard(self) -> None:
        """Forget the item and the open logical batch."""
        self.item, self.complete, self._open_step = None, None, None
        self._is_adding = self._is_lost = False


class DeclaredOrder:
    """The order of a loop without a loader: each `session.backward` is a physical batch that the caller declares."""

    def __init__(self) -> None:
        self._backwards = 0
        self._failed = False

    @property
    def is_new(self) -> bool:
        """Whether nothing was summed since the last step."""
        return self._backwards == 0

    def start_backward(self) -> None:
        """A backward begins; until it has ended it counts as failed."""
        self._require_intact()
        self._failed = True

    def end_backward(self) -> None:
        """The backward that began last ended well."""
        self._failed = False
        self._backwards += 1

    def end_logical_batch(self) -> None:
        """`optimizer.step()` was called."""
        self._require_intact()
        if self.is_new:
            raise ProtocolError(
                "optimizer.step() without a backward",
                cure="Call session.backward(losses) first; an empty draw is losses of shape [0]",
            )
        self._backwards = 0

    def discard(self) -> None:
        """Forget the physical batches since the last step."""
        self._backwards, self._failed = 0, False

    def _require_intact(self) -> None:
        # Which batches fail may depend on their examples, so going on without this one is not ours to decide.
        if self._failed:
            raise ProtocolError(
                "the last backward did not end, so a part of the logical batch is missing",
                cure="Call session.discard() and begin the logical batch again",
            )
