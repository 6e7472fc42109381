"""A loop over hushgrad's own loader, which tells of every item: the sampling is then observed, not declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.uses import UsePool
from hushgrad.errors import BatchStructureError, HushgradError, LossShapeError, ProtocolError
from hushgrad.guards.probing.row_order import PADDING, USERS
from hushgrad.guards.probing.widths import Drawn
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.session.loop import Loop, Turn
from hushgrad.session.open_batch import OpenBatch
from hushgrad.session.order import ObservedOrder
from hushgrad.session.others import Others
from hushgrad.session.own_backward import OwnBackward
from hushgrad.session.parts import Parts
from hushgrad.session.scalar import expecting
from hushgrad.torch_sharding import settle


class ObservedLoop(Loop):
    """The observer of one loader, and the loop over its items.

    Args:
        parts: those of the session.
        require_open: raises where the session was closed.
        others: the other processes, which wait for this one's items.
    """

    def __init__(self, parts: Parts, require_open: Callable[[], None], others: Others) -> None:
        self._parts, self._others = parts, others
        self._require_open = require_open
        self.collate_fn: Callable[[list[Any]], Any] | None = None
        """What makes its items; None for torch's own."""
        self.has_constant_shapes = False
        """Whether every item of the loader has one number of rows."""
        self._rounds_together = False
        self._order = ObservedOrder()
        self._batch: OpenBatch | None = None
        self._own: OwnBackward | None = None

    @property
    def item(self) -> PhysicalBatch | None:
        """The item in work, if any."""
        return self._order.item

    @property
    def latest(self) -> PhysicalBatch | None:
        """The item in work, or the last one of a logical batch that waits for its step."""
        return self._order.item or self._order.complete

    @property
    def is_open(self) -> bool:
        """Whether a logical batch was begun and has not ended."""
        return self._order.is_open

    @property
    def is_narrow(self) -> bool:
        """Whether gradients of the forwards of the item in work pass through 16 bits."""
        return self._batch is not None and self._batch.is_narrow

    @property
    def rounds_together(self) -> bool:
        """Whether gradients passed through 16 bits in an item whose number of rows follows the draw."""
        return self._rounds_together

    # What the loader tells -------------------------------------------------------------------------------------------

    def before_draw(self) -> None:
        """Refuse to read on before the loop has finished with the last item."""
        with self._others.telling():
            self._require_open()
            self._order.before_draw()
            self._parts.probe.before_draw(self.collate_fn, self.dataset)

    def begin(self, batch: PhysicalBatch, item: Any) -> None:
        """Take note of the item that the loop is about to get."""
        with self._others.telling():
            self._begin(batch, item)

    def _begin(self, batch: PhysicalBatch, item: Any) -> None:
        parts = self._parts
        parts.batch_comes()
        parts.update.clear()
        parts.marks.take_away()
        settle(parts.sharded)
        parts.frozen.require_same_parameters()
        parts.spending.require_pass(batch.pass_index)
        drawn = Drawn(
            self.dataset,
            batch.indices,
            item,
            batch.size,
            self.collate_fn,
            extents=batch.extents,
            records=batch.records,
            pass_index=batch.pass_index,
        )
        try:
            parts.probe.examine_collate(drawn)
        except HushgradError:
            raise  # refused, and asked again it is refused again
        except BaseException:
            self._lose(batch)
            raise
        self._order.begin(batch)
        if batch.first:
            parts.update.drop()  # of a logical batch whose step was interrupted before its release
        self.close()
        pool = UsePool(parts.plan, on_backward=parts.marks.put, sparse=parts.update.sparse_tables)
        pool.is_split = parts.is_split
        self._batch = OpenBatch(parts, pool, batch.size, len(batch.indices), batch.owners)
        parts.scope.record_into(pool)
        parts.probe.begin_item(batch.size, drawn)
        self._own = parts.probe.watcher = self._batch.own_backward()
        parts.frozen.begin_item()
        if batch.owners and len(set(batch.owners)) < len(batch.owners):
            parts.probe.expect_order(item, batch.size, USERS)
        elif 0 < len(batch.indices) < batch.size:
            parts.probe.expect_order(item, batch.size, PADDING)

    def lost(self, batch: PhysicalBatch) -> None:
        """Count a logical batch that was drawn and could not be read: which ones fail may depend on their examples.

        The loop cannot read on until it says that it drops the batch: else one record would decide how many steps run.
        """
        self._lose(batch)
        # The others wait for this item, and the first one leaves in the ledger that a batch is dropped.
        self._others.failed(
            BatchStructureError(
                "records of its batch could not be read or collated",
                cure="Let the dataset return a constant record where one cannot be read, and mend collate_fn",
            )
        )

    def _lose(self, batch: PhysicalBatch) -> None:
        self._order.lose()
        if batch.first:  # a later item's is open, and `discard` counts it
            self._parts.spending.discard()

    # What the training loop does -------------------------------------------------------------------------------------

    def backward(self, losses_B: Tensor) -> None:
        """Run backward on the losses of the item; those of several calls add up per example before clipping."""
        self.loss(losses_B, 1.0).backward()  # type: ignore[no-untyped-call]

    def loss(self, losses_B: Tensor, scale: float) -> Tensor:
        """Return the sum of the losses, to be run backward by somebody else."""
        batch = self._require_batch(losses_B)
        batch.expect(losses_B)
        self._parts.probe.losses(losses_B)
        total = expecting(losses_B, scale, batch)
        self._parts.probe.total(total)
        return total

    def reduced(self, losses_B: Tensor) -> Tensor | None:
        """Return the mean or sum of examined losses, where its backward is the session's to choose; else None.

        That is where gradients pass through 16 bits (each loss then gets 1, times the loss scale, and not 1/B: see
        `OpenBatch.divides_losses`), and where operands may be above their budget.
        """
        batch = self._batch
        if batch is None or not (losses_B.requires_grad and torch.is_grad_enabled()):
            return None
        if not batch.rounds(losses_B) and not batch.may_let_go:
            return None
        total = expecting(losses_B, 1.0, batch, returned=self._parts.mechanism.loss_reduction)
        self._parts.probe.total(total)
        return total

    def end_item(self) -> None:
        """Add the clipped sum of the item to its logical batch."""
        self._parts.take_marks()
        self._end(self._order.require_item())

    def end_step(self) -> Turn | None:
        """End the item in work, unless `end_item` has; return which batch it was where that is complete."""
        if self._order.complete is None:
            self._end(self._order.require_item())
        else:
            self._parts.frozen.require_no_surprises()
        if self._order.complete is None:
            return None
        last = self._order.end_logical_batch()
        return Turn(last.step, last.pass_index)

    def _end(self, item: PhysicalBatch) -> None:
        parts, batch = self._parts, self._open_batch()
        self._end_own()
        parts.frozen.require_no_surprises()
        batch.require_backward()
        parts.frozen.require_steady_groups(item)
        batch.require_told_penalties()
        scale = batch.scale()
        batch.examine()
        self._order.start_adding()
        batch.add(scale)
        self._rounds_together |= batch.passes_16_bits and not self.has_constant_shapes
        self.close()
        self._order.end_item()
        parts.probe.end_item()

    def discard(self) -> None:
        """Forget the item and the logical batch that is open."""
        self.close()
        self._order.discard()
        self._parts.probe.end_item()

    def close(self) -> None:
        """Refuse from here on a backward through the forwards of the item in work."""
        self._end_own()
        if self._batch is not None:
            self._batch.close()
            self._batch = None

    def _end_own(self) -> None:
        if self._own is not None:
            self._own.end()
            self._own = None

    def _require_batch(self, losses_B: Tensor) -> OpenBatch:
        item = self._order.require_item()
        if losses_B.shape[0] != item.size:
            raise LossShapeError(
                f"losses must have shape [{item.size}], one for each example of the item, got {list(losses_B.shape)}",
                cure="Reduce each example's own elements to one number, and keep the batch",
            )
        return self._open_batch()

    def _open_batch(self) -> OpenBatch:
        if self._batch is None:
            raise ProtocolError(
                "the item in work was interrupted as it was handed out",
                cure="Call session.discard() and iterate over the loader anew",
            )
        return self._batch
