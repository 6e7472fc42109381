"""Norms and sums of one item inside its backward, where the operands of all layers together would not fit.

Above the plan's budget for operands a backward is run twice over the same graph: the first time, from inside the root
of the losses, norms are measured, and each use is let go; the second time sums are formed, with the weights that follow
from the norms. A block that checkpointing runs again is run again by both. A clip rule whose groups do not depend on
each other needs no second run: a group is summed as soon as its last use came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from hushgrad.capture.in_turn import InTurn
from hushgrad.capture.uses import UsePool, gradients_by_name
from hushgrad.errors import HushgradError, ProtocolError, UncoveredParameterUseError, UnsupportedModelError
from hushgrad.gradients.contribution import Contribution
from hushgrad.gradients.in_passing import GroupByGroup, TwoPasses
from hushgrad.parallel.messages import exchanged
from hushgrad.session.padding import without_padding
from hushgrad.session.parts import Parts
from hushgrad.session.whole_users import of_users

Take = Callable[[str, list[Contribution]], None]

MORE_MEMORY = "allow more memory for operands (Plan(operand_bytes=...), `hushgrad machine`)"


class InPassing:
    """One item's way through a backward that lets operands go.

    Guarantee: the processes of a model that none of them has whole go the same way, each time.
    Guarantee: an item of which a backward was left by an exception is never released, nor run backward again.

    Args:
        parts: those of the session.
        pool: what the forwards of the item record into.
        rows: the number of examples, padding included.
        drawn: how many of them were drawn.
        owners: the user of each of them, where whole users are drawn.
    """

    def __init__(self, parts: Parts, pool: UsePool, rows: int, drawn: int, owners: Sequence[int] = ()) -> None:
        self._parts, self._pool, self._rows, self._drawn = parts, pool, rows, drawn
        self._owners, self._ownership = owners, parts.mechanism.sampling.ownership
        self._examples = drawn if self._ownership is None else len(set(owners))
        self._has_begun = False
        self._sums: TwoPasses | GroupByGroup | None = None
        self._turn: InTurn | None = None
        self._scale, self._is_divided, self._counted = 1.0, False, 0
        self._alone: dict[int, dict[str, list[Contribution]]] = {}
        self.is_done = False
        """Whether a backward has ended whose sums were formed inside of it."""

    @property
    def may_be_wanted(self) -> bool:
        """Whether the backward of what the forwards have announced so far may let operands go."""
        return (self._parts.is_split and self._parts.plan.limits_operands) or self._is_above_budget

    @property
    def _is_above_budget(self) -> bool:
        expected = self._pool.expected
        return expected is not None and expected.nbytes > self._parts.plan.operand_bytes

    # The backward -----------------------------------------------------------------------------------------------------

    def begin(self, scale: float, again: Callable[[], None], *, is_divided: bool) -> bool:
        """A backward is about to come to the model: return whether its uses are handed on as they come.

        Args:
            scale: undoes the division of its losses.
            again: runs that backward, and keeps its graph.
            is_divided: whether its losses are divided by the number of rows.

        Raises:
            ProtocolError: another backward over the item came before.
            UncoveredParameterUseError: it holds a gradient penalty.
            UnsupportedModelError: a part of the graph cannot be run twice.
        """
        expected, parts = self._pool.expected, self._parts
        if expected is None:
            return False
        in_order = True
        is_wanted = self._is_above_budget or self._has_begun
        if parts.is_split and not parts.world.is_alone:
            told = exchanged(parts.world, "plan of a backward", number=expected.digest << 1 | is_wanted)
            is_wanted = any(number & 1 for number, _ in told)
            in_order = len({number >> 1 for number, _ in told}) == 1
        if not is_wanted:
            return False
        self._require_first()
        self._has_begun, self._scale, self._is_divided = True, scale, is_divided
        self._alone = {row: {} for row in parts.probe.rows_to_compare(self._rows)}
        calls = expected.calls
        self._counted = parts.update.norm.counted
        parts.update.begin_in_passing(in_order=in_order)
        self._turn = self._pool.in_turn = InTurn(calls, self._kept_alone(self._summing(calls, again)))
        return True

    def _summing(self, calls: Mapping[str, int], again: Callable[[], None]) -> Take:
        """Return what forms the sums of the backward that comes, having run it once where norms are needed first."""
        update, mechanism = self._parts.update, self._parts.current
        clip = update.clip_of(mechanism)
        if clip.rule.clips_groups_apart:
            groups = self._sums = update.group_by_group(calls, self._scale, mechanism, self._examples)
            return self._cut(groups.take)
        self._require_twice()
        passes = self._sums = update.two_passes(self._scale, mechanism, self._examples)
        self._rehearse(calls, self._of_drawn(passes.measure), again)
        if self._in_any(bool(self._drawn) and passes.weigh()):
            self._rehearse(calls, self._of_drawn(passes.measure_lost), again)
            if self._drawn:
                passes.weigh_lost()

        def take(name: str, parts: list[Contribution]) -> None:
            # Of no example it is None, in its turn: the others wait for this process's part of theirs.
            update.take_in(name, passes.sum(name, parts) if self._drawn else None)

        return self._cut(take)

    def _require_twice(self) -> None:
        expected = self._pool.expected
        if expected is not None and expected.runs_once:
            raise UnsupportedModelError(
                "selective checkpointing (context_fn) keeps some values of a block for one backward, and operands are "
                "above the budget, so that the backward would be run twice",
                where="torch.utils.checkpoint",
                cure=f"Leave context_fn out, or clip group by group; or {MORE_MEMORY}",
            )

    def _rehearse(self, calls: Mapping[str, int], take: Take, again: Callable[[], None]) -> None:
        turn = self._pool.in_turn = InTurn(calls, take)
        try:
            with self._parts.probe.rehearsing():
                again()
        except HushgradError:
            raise
        except RuntimeError as error:
            if _is_nested(error):
                raise UnsupportedModelError(
                    "a block is computed again by a backward inside the backward (use_reentrant=True), which cannot "
                    "be run for its norms alone",
                    where="torch.utils.checkpoint",
                    cure=f"Call checkpoint(..., use_reentrant=False); or {MORE_MEMORY}",
                ) from error
            raise
        finally:
            self._pool.in_turn = None
        turn.finish()

    def _in_any(self, what: bool) -> bool:
        if not self._parts.is_split or self._parts.world.is_alone:
            return what
        return any(number for number, _ in exchanged(self._parts.world, "norms of a backward", number=int(what)))

    def _require_first(self) -> None:
        pool = self._pool
        if self._has_begun or pool.backwards or pool.holds:
            raise ProtocolError(
                "a second backward came over one item, whose operands together are above the budget: norms of both "
                "would be needed before the first sum, which was formed inside the first backward",
                where="operand_bytes",
                cure="Add the losses of each example and run one backward for each item (after one that was left by "
                f"an exception call session.discard()); or {MORE_MEMORY}",
            )
        if pool.asked:
            raise UncoveredParameterUseError(
                "a gradient is to be differentiated again (a gradient penalty, say), and operands are above the "
                "budget, so that the backward would be run twice",
                where="create_graph=True",
                cure=f"Leave the penalty out; or {MORE_MEMORY}",
            )

    def _of_drawn(self, take: Take) -> Take:
        """Return `take` for uses of the examples that were drawn; where none was it is never called."""
        return self._cut(take) if self._drawn else _nothing

    def _cut(self, take: Take) -> Take:
        """Return `take` for uses whose padding is cut off, joined by user where whole users are drawn."""
        drawn, rows, ownership = self._drawn, self._rows, self._ownership
        if not drawn or (drawn == rows and ownership is None):
            return take

        def cut(name: str, parts: list[Contribution]) -> None:
            uses = without_padding({name: parts}, drawn, rows)
            if ownership is not None:
                uses, _ = of_users(uses, self._owners, averages=ownership.averages)
            take(name, uses[name])

        return cut

    def end(self) -> None:
        """The backward has ended."""
        assert self._turn is not None
        self._turn.finish()
        self._turn, self._pool.in_turn = None, InTurn({}, _nothing)  # what comes now is more than was announced
        if isinstance(self._sums, GroupByGroup):
            self._sums.end()
        self.is_done = True
        self._pool.count_backward(is_undivided=not self._is_divided)

    # The end of the item ----------------------------------------------------------------------------------------------

    def finish(self, scale: float) -> None:
        """The item ends, and its sums are in the update: refuse them where they are not what they were taken for.

        Raises:
            SensitivityMismatchError: what was summed is not what was measured.
            ProtocolError: other backwards over the item were not seen from their beginning.
        """
        if self._pool.holds or scale != self._scale:
            raise ProtocolError(
                "a part of a backward, or a backward, over this item did not come from session.backward, session.loss "
                "or engine.per_example, and its operands are above the budget",
                where="operand_bytes",
                cure="Add all losses of an example into the one that is handed to these, and run one backward for "
                f"each item; or {MORE_MEMORY}",
            )
        if isinstance(self._sums, TwoPasses) and self._drawn:
            self._sums.end()
        self._parts.update.end_in_passing(self._parts.current, self._examples, self._counted)

    def close(self) -> None:
        """Drop what is still held: what hands uses on and this hold each other."""
        self._turn = self._sums = None
        self._alone = {}

    # What the probe compares ------------------------------------------------------------------------------------------

    def _kept_alone(self, take: Take) -> Take:
        """Return `take`, which first keeps what the examples that are compared have of each parameter."""
        if not self._alone:
            return take

        def keep(name: str, parts: list[Contribution]) -> None:
            with torch.no_grad():
                for row, kept in self._alone.items():
                    kept[name] = [part.alone(row).map_examples(Tensor.clone) for part in parts]
            take(name, parts)

        return keep

    @property
    def rows(self) -> list[int]:
        """The examples whose gradients were kept."""
        return list(self._alone)

    def gradient_of(self, example: int) -> Iterator[tuple[str, Tensor]]:
        """Yield the gradient of one of these by each parameter that was used, `[*shape]`."""
        return gradients_by_name(self._alone[example])


def _nothing(name: str, parts: list[Contribution]) -> None:
    """Take no notice of the uses of a parameter."""


def _is_nested(error: RuntimeError) -> bool:
    """Whether torch refused because a checkpointed block would run a backward of its own."""
    trace: Any = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is torch.utils.checkpoint.CheckpointFunction.backward.__code__:
            return True
        trace = trace.tb_next
    return False
