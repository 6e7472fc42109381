"""A loop without a loader of hushgrad's: each `session.backward` is a physical batch that the caller declares."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from hushgrad.accounting.ledger.contract import DECLARED
from hushgrad.capture.uses import UsePool
from hushgrad.errors import ProtocolError
from hushgrad.session.loop import Loop, Turn
from hushgrad.session.open_batch import OpenBatch
from hushgrad.session.order import DeclaredOrder
from hushgrad.session.parts import Parts

_NEEDS_A_LOADER = "Make a loader with session.batches(dataset) or session.batches_of(data_loader), and iterate over it"


class DeclaredLoop(Loop):
    """Physical batches that are disjoint parts of a logical batch; `optimizer.step()` ends it."""

    item = latest = None

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._order = DeclaredOrder()
        self._rounds_together = False
        self._released = 0
        # One for all: forwards run before it is said which batch they belong to.
        self._pool = UsePool(parts.plan, outlasts_backward=False, sparse=parts.update.sparse_tables)
        parts.scope.record_into(self._pool)

    @property
    def is_open(self) -> bool:
        """Whether anything was summed since the last step."""
        return not self._order.is_new

    @property
    def is_narrow(self) -> bool:
        """Whether gradients of the forwards so far pass through 16 bits."""
        return self._pool.is_narrow

    @property
    def rounds_together(self) -> bool:
        """Whether gradients passed through 16 bits: how many rows a batch has is not known to be fixed."""
        return self._rounds_together

    def backward(self, losses_B: Tensor) -> None:
        """Run backward on the losses of one physical batch, and add its clipped sum; `[0]` is an empty draw."""
        parts, size = self._parts, losses_B.shape[0]
        if not parts.world.is_alone:
            raise ProtocolError(
                "in several processes nobody sees that their batches without a loader are parts of one draw",
                cure=_NEEDS_A_LOADER,
            )
        parts.spending.open(DECLARED, None)
        parts.batch_comes()
        parts.take_marks()
        self._order.start_backward()
        if self._order.is_new:
            parts.update.drop()  # of a logical batch whose step was interrupted before its release
        batch = OpenBatch(parts, self._pool, size, size, tuple(parts.chosen_owners))
        try:
            if size > 0:
                batch.expect(losses_B)
                parts.probe.losses(losses_B)
                parts.probe.has_no_item()
                total = losses_B.sum()
                given = total.new_full((), batch.loss_scale)
                lets_go = batch.begins([total], [given], is_divided=False)
                total.backward(given)  # type: ignore[no-untyped-call]
                if lets_go:
                    batch.has_run()
                batch.examine()
                batch.add(scale=1 / batch.loss_scale)
                self._rounds_together |= batch.passes_16_bits
        finally:
            batch.close()
        self._order.end_backward()
        parts.marks.put()

    def loss(self, losses_B: Tensor, scale: float) -> NoReturn:
        """Refuse: nobody would see where the physical batch ends."""
        raise ProtocolError("session.loss needs an item of the session's own loader to belong to", cure=_NEEDS_A_LOADER)

    def reduced(self, losses_B: Tensor) -> None:
        """Return None: a backward on a mean or a sum is refused without a loader."""

    def end_item(self) -> NoReturn:
        """Refuse: each `session.backward` is a physical batch of its own, which has ended with it."""
        raise ProtocolError("session.end_item() ends an item of the session's own loader", cure=_NEEDS_A_LOADER)

    def end_step(self) -> Turn:
        """End the logical batch."""
        self._parts.frozen.require_no_surprises()
        self._order.end_logical_batch()
        self._released += 1
        return Turn(self._released - 1, 0)

    def discard(self) -> None:
        """Forget the physical batches since the last step."""
        self._pool.clear()
        self._parts.scope.record_into(self._pool)
        self._order.discard()
        self._parts.probe.forget()

    def close(self) -> None:
        """Drop what was recorded."""
        self._pool.clear()
