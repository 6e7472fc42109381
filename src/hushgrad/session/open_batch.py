"""The physical batch in work: open, collect, close."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from hushgrad.capture.uses import UsePool
from hushgrad.errors import (
    LedgerError,
    ProtocolError,
    SensitivityMismatchError,
    UncoveredParameterUseError,
    UnsupportedModelError,
)
from hushgrad.guards.probing.loss_cuts import Cut
from hushgrad.session.in_passing import InPassing
from hushgrad.session.own_backward import OwnBackward
from hushgrad.session.padding import without_padding
from hushgrad.session.parts import Parts
from hushgrad.session.release import note_sensitivity
from hushgrad.session.whole_users import of_users
from hushgrad.torch_internals import NO_GRAPH_TASK, current_graph_task


class OpenBatch:
    """A physical batch from its first forward until its clipped sum is added, or until it is dropped.

    While it is open, backwards are recorded in its pool. Once it is closed, a backward through its forwards is refused:
    its examples were not drawn for what is in work then.

    Args:
        parts: those of the session.
        pool: what the forwards of this batch record into.
        rows: the number of examples, padding included.
        drawn: how many of them were drawn; those after them are padding.
        owners: the user of each of them, where whole users are drawn.

    Attributes:
        loss_scale: what losses that are not divided are multiplied by.
    """

    def __init__(self, parts: Parts, pool: UsePool, rows: int, drawn: int, owners: Sequence[int] = ()) -> None:
        self._parts, self._pool, self._rows, self._drawn = parts, pool, rows, drawn
        self._owners = owners
        scale = parts.loss_scale
        self.loss_scale = scale.at(0 if scale.is_constant else parts.spending.steps)
        self._is_narrow = False
        self._decided = (NO_GRAPH_TASK, False)
        self._has_divided = False
        self._sessions: set[int] = set()  # the backwards of losses that the session itself has added up
        self._passing = InPassing(parts, pool, rows, drawn, owners)
        pool.batch_size = rows

    @property
    def is_narrow(self) -> bool:
        """Whether gradients of its forwards so far pass through 16 bits."""
        return self._pool.is_narrow

    @property
    def follows_sizes(self) -> bool:
        """Whether what is done to gradients may follow how large these are: 16 bits, hooks, rows that are counted."""
        return self._pool.is_narrow or self._parts.probe.changes_gradients or self._counts_rows

    @property
    def is_watched(self) -> bool:
        """Whether its backward is to be seen: what follows sizes was met, or may still be met before it."""
        return self.follows_sizes or self._parts.probe.writes_down

    @property
    def divides_losses(self) -> bool:
        """Whether losses are divided by the number of rows before their backward, which `add` undoes.

        Not where gradients pass through 16 bits: they would be rounded after the division, and one example more or less
        would change the rounding of all others. Nor where hooks or custom functions change them, maybe by their size.
        Nor where a record counts for the rows of a table where its gradient is not 0: the smallest ones would become 0
        by the division, of all records at once.
        """
        return self._parts.mechanism.loss_reduction == "mean" and not self._is_undivided

    @property
    def _is_undivided(self) -> bool:
        return self._rounding_shows or self._parts.probe.changes_gradients

    @property
    def _counts_rows(self) -> bool:
        return bool(self._parts.update.sparse_tables)

    @property
    def _rounding_shows(self) -> bool:
        """Whether what a division rounds away may move the release by more than the clip norm."""
        return self.passes_16_bits or self._counts_rows

    @property
    def passes_16_bits(self) -> bool:
        """Whether gradients pass through 16 bits, in the model or in the loop's computation of its losses."""
        return self._is_narrow or self._pool.is_narrow or self._parts.probe.saw_narrow_loss

    def expect(self, losses_B: Tensor) -> None:
        """A backward of these losses will come.

        Raises:
            ProtocolError: they hold no gradient to run back from.
        """
        if not (losses_B.requires_grad and torch.is_grad_enabled() and losses_B.is_floating_point()):
            raise ProtocolError(
                f"losses hold no gradient to run back from: requires_grad is {losses_B.requires_grad}, gradients are "
                f"{'on' if torch.is_grad_enabled() else 'off'}, the dtype is {losses_B.dtype}",
                cure="Compute them from the model's outputs as floating-point numbers, outside of torch.no_grad(), "
                "torch.inference_mode() and session.paused(), and do not detach them",
            )
        self.rounds(losses_B)

    def rounds(self, losses_B: Tensor) -> bool:
        """Return whether a backward of these losses is not to divide them, and take note of it."""
        self._is_narrow = self._is_narrow or self._parts.probe.is_narrow(losses_B)
        return self._is_undivided

    def own_backward(self) -> OwnBackward | None:
        """Return what multiplies the gradients of the loop's own losses; None where nothing has to."""
        is_mean = self._parts.mechanism.loss_reduction == "mean"
        factor = self._rows * self.loss_scale if is_mean else self.loss_scale
        if not is_mean and factor == 1:
            return None
        return OwnBackward(self, factor, is_mean=is_mean)

    def cuts(self, loss: Tensor) -> Sequence[Cut]:
        """Return where the gradient of a loss of the loop's own may be multiplied before it is rounded."""
        return self._parts.probe.cuts(loss)

    def multiplied(self, factor: float) -> None:
        """The gradient of the loop's own loss was multiplied, in the backward that runs."""
        self._pool.note_undivided()
        self._parts.probe.multiplied(factor)

    def divides_now(self) -> bool:
        """Return `divides_losses` for the backward that runs, the same for all losses in it, and take note of it."""
        task, divides = self._decided
        self._sessions.add(current_graph_task())
        if task != current_graph_task():
            divides = self.divides_losses
            self._decided = current_graph_task(), divides
        if divides:
            self._has_divided = True
        else:
            self._pool.note_undivided()
        return divides

    @property
    def may_let_go(self) -> bool:
        """Whether its backward may form sums inside of it, and let operands go."""
        return self._passing.may_be_wanted

    def begins(self, losses: list[Tensor], given: list[Tensor], *, is_divided: bool) -> bool:
        """A backward of these losses with these gradients begins: return whether it lets operands go as they come.

        `has_run` is then to be called when it has ended. Raises what `InPassing.begin` raises, and
        `SensitivityMismatchError`.
        """
        anchor = self._parts.scope.anchor

        def again() -> None:
            torch.autograd.backward(losses, given, retain_graph=True, inputs=[anchor])

        scale = float(self._rows) if is_divided else 1 / self.loss_scale
        with self._alarmed():
            return self._passing.begin(scale, again, is_divided=is_divided)

    def has_run(self) -> None:
        """A backward that let operands go has ended."""
        with self._alarmed():
            self._passing.end()

    @contextmanager
    def _alarmed(self) -> Iterator[None]:
        """Leave in the ledger what the monitor of the sensitivity has found."""
        try:
            yield
        except SensitivityMismatchError:
            with suppress(LedgerError):  # the alarm is what must be heard
                note_sensitivity(self._parts)
            raise

    def require_backward(self) -> None:
        """Refuse to end a batch on which no backward has ended."""
        if self._pool.backwards == 0:
            raise ProtocolError(
                "no backward has finished for this item of the loader",
                cure="Run backward on its loss before optimizer.step() (or session.end_item())",
            )

    def require_told_penalties(self) -> None:
        """Refuse a gradient penalty in a scalar loss of the loop's own.

        It comes by no output of the model, so that a scalar does not show whether each example has one of its own.

        Raises:
            UncoveredParameterUseError: with the cure.
        """
        told = self._parts.probe.told_losses(self._sessions)
        if self._pool.is_penalized and (told is None or told < self._pool.backwards):
            raise UncoveredParameterUseError(
                "a gradient of a gradient (a gradient penalty, say) is in a scalar loss of the loop's own, which does "
                "not show that each example has one of its own",
                where="create_graph=True",
                cure="Add each example's penalty to its own loss, (g.flatten(1).norm(2, 1) - 1) ** 2 for instance, and "
                "call session.backward(losses) with one loss per example; or give the gradient to "
                "engine.per_example(a function that returns [B])",
            )

    def scale(self) -> float:
        """Return what undoes the division of the losses by the number of rows.

        Raises:
            UnsupportedModelError: gradients were rounded to 16 bits after that division, or told from 0 to count rows.
                One record more or less would change the rounding of all others' gradients, and so the sum, or the
                counts, by more than one record may.
        """
        pool = self._pool
        if pool.undivided == pool.backwards and not (self._rounding_shows and self._parts.probe.saw_own_loss):
            return 1 / self.loss_scale
        if self._parts.mechanism.loss_reduction == "sum" and (self.loss_scale == 1 or not self.passes_16_bits):
            return 1.0
        if pool.undivided and (self._has_divided or pool.undivided < pool.backwards):
            raise UnsupportedModelError(
                "gradients of some backwards over this item (which pass through 16 bits, hooks or custom functions, or "
                "are of tables of SparseRows) were handed on as they are, and others were divided by the number of "
                "examples",
                cure="Add the losses of each example and call session.backward once for an item, or run all of its "
                "forwards under the same autocast",
            )
        if self._rounding_shows:
            before = "they are rounded to 16 bits" if self.passes_16_bits else "rows of SparseRows are counted by them"
            raise UnsupportedModelError(
                f"a mean loss of the loop's own divides gradients by the number of examples before {before}, where "
                f"they cannot be multiplied by it again (a mean inside the model that is itself taken in 16 bits, a "
                f"graph that cannot be read, a backward that goes to other tensors, too, or is not loss.backward()), "
                f"so that one example changes how all others' gradients are rounded, by more than the clip norm in sum",
                cure="Compute the loss by engine.per_example(criterion), or call engine.session.backward(losses) with "
                "one loss per example: both divide nothing before it is rounded",
            )
        return float(self._rows)

    def examine(self) -> None:
        """Probe what ran, unless it was probed before.

        Raises:
            CrossSampleLeakError, PrivateBufferError: naming the place and the cure.
            ContractChangedError: a tensor that was declared public was written to.
        """
        parts = self._parts
        parts.scope.leave_if_stale()
        parts.public.require_unchanged()
        is_due = bool(self._drawn) and parts.probe.is_due(self._rows)
        if is_due:  # an ordinary gradient is told by its own name, not as a leak
            parts.frozen.require_no_surprises()
        with parts.examined(is_due):
            if self._drawn:
                # A penalty's part of it does not come from the gradients that the outputs got.
                is_whole = self._pool.backwards == 1 and not self._pool.is_penalized
                is_divided = self._pool.undivided < self._pool.backwards
                source = self._passing if self._passing.is_done else self._pool
                rows = self._passing.rows if self._passing.is_done else None
                parts.probe.examine(self._rows, source.gradient_of if is_whole else None, rows, is_divided=is_divided)

    def add(self, scale: float) -> None:
        """Add the clipped sum of the examples that were drawn to the update.

        The example that stands in for an empty draw contributes exactly nothing.
        """
        parts = self._parts
        with self._alarmed():
            if self._passing.is_done:
                self._passing.finish(scale)
                return
            uses = without_padding(self._pool.take(), self._drawn, self._rows)
            if not self._drawn:
                if not parts.update.is_scattered:
                    return
                uses = {}  # the others wait for this process's part of theirs
            examples, ownership = self._drawn, parts.mechanism.sampling.ownership
            if ownership is not None and self._drawn:
                uses, examples = of_users(uses, self._owners, averages=ownership.averages)
            parts.update.add(uses, scale, parts.current, examples)

    def close(self) -> None:
        """Drop what is still recorded; from here on a backward through its forwards is refused."""
        self._pool.clear()
        self._passing.close()
        self._pool.batch_size = None
