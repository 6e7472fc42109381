"""For which items the program between item and loss is written down, and when it is run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hushgrad.capture.axes.layout import Path, Role
from hushgrad.capture.public import PublicTensors
from hushgrad.guards.probing.constants import Constants
from hushgrad.guards.probing.item_settings import ItemSettings
from hushgrad.guards.probing.item_statistics import require_no_statistics, statistics_in
from hushgrad.guards.probing.looks import Looks
from hushgrad.guards.probing.loop_numbers import LoopNumbers
from hushgrad.guards.probing.loop_settings import LoopSettings
from hushgrad.guards.probing.loss_between import LossesBetween
from hushgrad.guards.probing.loss_examination import REORDERED, require_separate_program
from hushgrad.guards.probing.loss_numbers import NumbersTaken
from hushgrad.guards.probing.loss_order import untold_of_places
from hushgrad.guards.probing.loss_padding import LossPadding
from hushgrad.guards.probing.loss_program import Earlier, cut_lengths
from hushgrad.guards.probing.loss_sizes import require_proportional_gradients
from hushgrad.guards.probing.loss_trace import NOTHING, LossTrace
from hushgrad.guards.probing.novelty import Extremes
from hushgrad.guards.probing.positions import Positions
from hushgrad.guards.probing.state import State
from hushgrad.guards.probing.widths import Drawn
from hushgrad.randomness import KeyStream

FIRST = 2
"""So many items are always looked at."""

PASSES = 16
"""The first item of each of so many passes has its settings compared: a loop that sets some once a pass is told."""


class LossPrograms:
    """Looks at the programs of one session: of its first two items, and of secret random ones (see `Looks`).

    So at items of more or fewer examples than any before, or with a longer record: so many are they not.

    Guarantee: no update is released from an item that was looked at, if one example's loss, or the gradient that its
    outputs get, changes with the rows of others.

    Args:
        loss_reduction: "mean" or "sum", as declared.
        expected_size: the expected batch size, None if it is not known.
        stream: secret bits for the later items; None to look at the first two only.
        public: what was declared, and is no part of any batch.
        positions: which outputs of the model are as long as the longest record; learnt by those who run it.
        model: the root.
        is_private: whether the backward that runs accumulates gradients of the model.
    """

    def __init__(
        self,
        loss_reduction: str,
        expected_size: float | None,
        stream: KeyStream | None = None,
        public: PublicTensors | None = None,
        positions: Positions | None = None,
        model: nn.Module | None = None,
        is_private: Callable[[], bool] = lambda: True,
    ) -> None:
        self._declared = loss_reduction, expected_size
        self._numbers = LoopNumbers()
        self._padding = LossPadding(Positions() if positions is None else positions, self._numbers)
        self._between = LossesBetween()
        self._settings, self._of_items = LoopSettings(model), ItemSettings(model)
        self._seen = Extremes()
        self._is_told = False  # whether the program of the item in work could be run again
        self.have_changed = False
        """Whether a loss, or what the model is given, was computed otherwise in another item."""
        self._untold_of_places: dict[str, None] = {}
        self._trace: LossTrace | None = None
        self._is_own = False
        self._is_private = is_private
        self._has_changed_gradients = False
        self._earlier = Earlier(constants=Constants(public, model, is_private))
        self._items = self._size = 0
        self._pass = -1
        self._is_compared = False  # whether the settings of the item in work are
        self.reorders = False
        """Whether the loop gave the model the rows of an item in another order than the loader's."""
        self.has_read = False
        """Whether the loop read numbers of the batch's examples before it had its losses, or may have."""
        self._begun = 0
        """Calls of the model and of criteria that have not returned: at the end of an item those that failed."""
        self._untold: dict[str, None] = {}
        self.cuts: set[int] = set()
        """Lengths that stand in the loop's code and to which it cuts parts of its items."""
        self._looks = Looks(None if stream is None else stream.fork("loss programs"))

    def before_draw(self, collate_fn: Callable[[list[Any]], Any] | None, dataset: Any) -> None:
        """The next item is going to be read."""
        self._of_items.before_draw(collate_fn, dataset, is_wanted=self._items < FIRST)
        changes = self._earlier.constants.changes
        changes.before_draw()
        self.have_changed = self.have_changed or self._of_items.have_changed or changes.have_changed

    def begin(self, size: int, drawn: Drawn) -> None:
        """An item of `size` examples is handed out."""
        if size < 2:
            return
        self._items += 1
        self._looks.begin()
        is_new = self._seen.note(size, drawn.extents)
        self.has_read |= bool(statistics_in(drawn)[1])  # Python holds them, and may decide by them unseen
        is_looked_at = self._items <= FIRST or self._looks.wanted or is_new
        is_looked_at = is_looked_at or self._earlier.constants.leaves.were_reached
        begins = self._pass < drawn.pass_index < PASSES
        self._pass, self._size, self._is_compared = drawn.pass_index, size, is_looked_at or begins
        if self._is_compared:
            self._of_items.drawn(drawn.collate_fn, drawn.dataset)
        if is_looked_at:
            known = self._earlier, drawn.layout, drawn.lists
            self._trace = LossTrace(size, drawn.item, drawn.axes, *known, self._is_private)

    def given(self, inputs: Any, state: State | None, roles: Mapping[Path, Role] = NOTHING) -> None:
        """A forward that may be trained on begins with these inputs, and from this state where that was kept.

        `roles`: what its inputs hold, as far as it is known.
        """
        self._begun += 1
        if self._is_compared:
            self._settings.given(inputs, self._size)
        if self._trace is not None:
            self._trace.given(inputs, () if state is None else state.values(), roles)

    def returned(self, output: Any, turned: Sequence[Tensor] = (), module: nn.Module | None = None) -> None:
        """The `module` has returned this, None if it raised; `turned` has the examples on the second axis."""
        self._begun -= output is not None
        if self._trace is not None:
            self._trace.returned(output, turned, module)
        if self._is_compared:
            self._settings.returned()

    def evaluating(self, criterion: Any) -> None:
        """A criterion, module or function, is going to be called."""
        self._begun += 1
        if self._is_compared:
            self._settings.evaluating(criterion)

    def evaluated(self, criterion: Any) -> None:
        """It has returned."""
        self._begun -= 1
        if self._is_compared:
            self._settings.evaluated(criterion)

    def losses(self, losses: Tensor) -> None:
        """A backward will run on these losses `[B]`."""
        if self._trace is not None:
            self._trace.loss(losses, is_rows=True)

    def scalar(self, loss: Tensor, weight: Any = None) -> None:
        """A backward runs on this loss of the loop's own; `weight`: the gradient that it was given, if any."""
        if self._trace is not None:
            self._is_own = True
            self._trace.loss(loss, is_rows=False, weight=weight)

    def runs(self, roots: Sequence[Tensor]) -> None:
        """A backward runs from these roots, and has come to an output of the model."""
        if self._trace is not None:
            self._trace.runs(roots)

    def multiplied(self, factor: float) -> None:
        """The backward that runs had the gradient of its loss multiplied."""
        if self._trace is not None:
            self._trace.backward.multiplied(factor)

    @property
    def are_written_down(self) -> bool:
        """Whether the calls of the item in work are written down."""
        return self._trace is not None

    @property
    def change_gradients(self) -> bool:
        """Whether hooks or autograd functions were among the loop's calls, of this item or of one before."""
        if self._trace is not None and self._trace.changes_gradients:
            self._has_changed_gradients = True
        return self._has_changed_gradients

    def examine(self, *, is_divided: bool = False) -> str:
        """Run the program of the item again.

        `is_divided`: whether gradients of its losses were divided by the number of examples.

        Returns why its own loss could not be told, "" if it could or it has none.

        Raises:
            CrossSampleLeakError: examples change each other's losses or gradients.
            LossShapeError: the loss is a sum where a mean was declared, or the reverse.
            UncoveredParameterUseError: a leaf outside of the model got a gradient of its losses.
        """
        self._note_failed()
        if self._trace is None:
            return ""
        self._trace.end()
        constants = self._earlier.constants
        constants.leaves.require_none()
        self.have_changed = self.have_changed or constants.changes.have_changed
        program, outside = self._trace.program, self._trace.outside
        why = require_separate_program(program, *self._declared, self._numbers)
        why = why or self._trace.backward.untold(program)
        if is_divided and self._declared[0] == "mean" and self._trace.changes_gradients:
            require_proportional_gradients(program)
        self._numbers.note(program)
        self.cuts |= cut_lengths(program)
        self.has_read |= program.reads_values or outside.has_come or constants.are_made_anew
        self.has_read |= self._trace.has_read
        self.has_read |= outside.is_readable and NumbersTaken(program, {}).are_free()
        self._is_told = not why
        self.reorders = why == REORDERED
        if self._is_told:
            self._untold_of_places |= dict.fromkeys(untold_of_places(program))
        if self._is_own:
            return program.doubt or why
        if why and (program.ends or self._trace.has_unseen_loss):
            self._untold[why] = None
        return ""

    def _note_failed(self) -> None:
        """Whether a call fails is a look at the values: a loop that goes on has one."""
        self.has_read |= self._begun > 0
        self._begun = 0

    def examine_beside(self, drawn: Drawn | None) -> None:
        """Run the program of the item, which is `drawn`, again on a batch that is padded further, and on earlier rows.

        Raises:
            CrossSampleLeakError: losses follow how far the batch is padded.
        """
        if self._is_compared:
            self.have_changed = self._settings.have_changed() or self.have_changed
        if self._trace is None or drawn is None or not self._trace.program.ends:
            return
        self._trace.end()
        program = self._trace.program
        self._padding.require_same(program, drawn, is_reordered=self.reorders)
        if self._is_told:
            require_no_statistics(program, drawn)
            self._between.compare(program, drawn, self._scale)
            self.have_changed = self._between.have_changed or self.have_changed

    def _scale(self, size: int) -> float:
        return size if self._declared[0] == "mean" else 1.0

    @property
    def may_have_read(self) -> bool:
        """Whether tensors came from outside of which a later item tells whether they are constants of the loop."""
        return not self.has_read and self._earlier.constants.are_open

    @property
    def untold(self) -> tuple[str, ...]:
        """Why programs of losses `[B]` could not be run again."""
        return tuple(self._untold)

    @property
    def untold_of_places(self) -> tuple[str, ...]:
        """What could not be told of whether losses follow the place of their record, unless values were read anyway."""
        return () if self.has_read or self.may_have_read else tuple(self._untold_of_places)

    @property
    def untold_of_padding(self) -> tuple[str, ...]:
        """What could not be told of how losses follow padding, as far as no later item has told it."""
        return self._padding.untold

    def stop_looks(self) -> None:
        """Look at no later item: for benchmarks of an ordinary step."""
        self._looks.stop()

    def stop(self) -> None:
        """Write down no more of the item in work; what was written is still examined."""
        if self._trace is not None:
            self._trace.end()

    def forget(self) -> None:
        """The item is done, or another one begins."""
        self._note_failed()
        if self._trace is not None:
            self._trace.end()
            self._trace = None
        self._is_own = self._is_told = self._is_compared = False
        self._earlier.constants.leaves.end_item()
        self._settings.forget()
