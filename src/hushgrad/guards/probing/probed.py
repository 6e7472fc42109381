"""A model that is examined, and what is known of it: shared by the examinations of its calls in one item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from torch import Tensor, nn

from hushgrad.capture.axes.layout import Role
from hushgrad.capture.scope import Scope
from hushgrad.gradients.across import NOWHERE, Across
from hushgrad.guards.probing.calls import Call
from hushgrad.guards.probing.loss_probe import Runs
from hushgrad.guards.probing.novelty import Novelty
from hushgrad.guards.probing.place import called
from hushgrad.guards.probing.positions import Positions
from hushgrad.guards.probing.rows import (
    Batch,
)
from hushgrad.guards.probing.trees import Path
from hushgrad.guards.probing.widths import Drawn, OwnWidth, own_widths


@dataclass
class Probed:
    """A model whose calls are examined.

    Attributes:
        model: the root module that was made private.
        scope: where capture is on, for the gradient.
        parameters: the trainable parameters, by name.
        loss_reduction: how a scalar that the model returns is a loss, "mean" or "sum".
        forwards: the cost so far, in forwards of a batch; a backward counts as two.
        keeps_runs: whether `runs` is wanted.
        runs: what the last examined call returned for altered batches.
        axes: of each module's inputs, by their paths, the axes of the examples, as they were found.
        recorded: gives the gradients of one example that the loop's own backward recorded; None where they are not of
            this call alone.
        recorded_rows: the examples that it gives the gradients of; None for all.
        drawn: the loader's item that is in work; None without a loader.
        novelty: what is known of the inputs of earlier batches.
        cuts: lengths that are known to be constants to which the loop cuts its batches.
        positions: which outputs have positions of a record; learns what runs of one record alone show.
        is_hooked_by_loop: whether hooks or functions that change gradients were met among the loop's own calls.
        is_divided: whether the loop's losses were divided by the number of examples.
        skipped: what could not be examined, and why.
        across: the processes that have other parts of the gradients; all of them examine the same calls.
        sparse: names of tables that are too large for a gradient of all their rows.
    """

    model: nn.Module
    scope: Scope
    parameters: Mapping[str, nn.Parameter]
    loss_reduction: str
    forwards: float = 0.0
    keeps_runs: bool = False
    runs: Runs | None = None
    axes: dict[nn.Module, Mapping[Path, int]] = field(default_factory=dict)
    recorded: Callable[[int], Iterable[tuple[str, Tensor]]] | None = None
    recorded_rows: Sequence[int] | None = None
    drawn: Drawn | None = None
    novelty: Novelty = field(default_factory=Novelty)
    cuts: Set[int] = frozenset()
    positions: Positions = field(default_factory=Positions)
    is_hooked_by_loop: bool = False
    is_divided: bool = False
    skipped: list[str] = field(default_factory=list)
    across: Across = NOWHERE
    sparse: Set[str] = frozenset()

    def widths(self, call: Call, batch: Batch) -> list[OwnWidth]:
        """Return records of a call that are shorter than the longest, with their own lengths."""
        return own_widths(self.drawn, batch, self.novelty.varying(call.module, call.inputs))

    def roles(self, call: Call) -> Mapping[Path, Role]:
        """Return what capture takes the inputs of a call for."""
        return self.scope.roles_of(call.module, *call.inputs)

    def name_of(self, module: nn.Module) -> str:
        """Return what messages call a module of the model."""
        return called(self.model, next((known for known, part in self.model.named_modules() if part is module), None))
