"""When the making of an item is examined: what its dataset reads, and what its collate function makes of the records.

At the first item of at least two records, at those that are looked at, and as soon as records differ in length, or one
is much shorter beside the longest than before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch.utils.data.dataloader import default_collate

from hushgrad.accounting.conditions import KEPT_BY_DATASET
from hushgrad.capture.axes.batch_axes import nested_is_given
from hushgrad.capture.axes.layout import Path
from hushgrad.errors import ProtocolError
from hushgrad.guards.probing.calls import SEED
from hushgrad.guards.probing.collate_examination import require_separate_records
from hushgrad.guards.probing.collate_probe import Form
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.dataset_copies import copied_or_itself
from hushgrad.guards.probing.dataset_reads import DatasetReads
from hushgrad.guards.probing.findings import Findings
from hushgrad.guards.probing.joint_reads import require_separate_reads
from hushgrad.guards.probing.looks import Looks
from hushgrad.guards.probing.novelty import Spread
from hushgrad.guards.probing.on_trust import OnTrust
from hushgrad.guards.probing.row_order import KnownByPlace
from hushgrad.guards.probing.state import State, forked_randomness
from hushgrad.guards.probing.trees import kept_values, tensors_at
from hushgrad.guards.probing.widths import Drawn
from hushgrad.sampling.default_collation import functions_of_others, is_default, is_plain


class ItemProbe:
    """Examines how the items of one session's loader are made, and knows what was found of them.

    Args:
        looks: whether the batch in work is looked at.
        findings: are told of what is found.
        on_trust: takes what could not be told.
    """

    def __init__(self, looks: Looks, findings: Findings, on_trust: OnTrust) -> None:
        self._looks = looks
        self._findings = findings
        self._on_trust = on_trust
        self._form = Form()
        self._statistics: frozenset[Path] = frozenset()
        self._collate_is_known = self._reads_are_known = False
        self._dataset_reads = DatasetReads()
        self._turns = 0  # how often the collate function was examined
        self._before: State | None = None  # what the collate function kept before the item in work was made
        self._spread = Spread()  # of the records' lengths

    def before_draw(self, collate_fn: Callable[[list[Any]], Any] | None, dataset: Any) -> None:
        """The next item is going to be read: keep what the caller's `collate_fn` keeps, if it is to be examined.

        What the dataset keeps is not looked at there, wherever it is met.
        """
        self._dataset_reads.before_draw(dataset, is_look=self._looks.wanted)
        is_due = self._looks.wanted or not self._collate_is_known
        root = functions_of_others() if is_default(collate_fn) else collate_fn  # torch's own keeps nothing
        if is_due and root and self._before is None:
            self._before = State(root, parameters=False, aside=dataset)

    def examine(self, drawn: Drawn) -> None:
        """Probe what made an item, if it is due; its records are read once more.

        Where a collate function fills a buffer of its own, that holds the item again afterwards.

        Raises:
            CrossSampleLeakError: a record follows others, or the collate function mixes records, or keeps what follows
                them.
        """
        is_new = self._spread.note(drawn.extents[: len(drawn.indices)]) or self._looks.wanted
        if is_new or not self._reads_are_known:
            with self._findings.told():
                untold = require_separate_reads(drawn)
            self._reads_are_known = len(drawn.indices) > 1
            self._on_trust.note([] if untold is None else [untold])
        self._examine_dataset(drawn)
        is_due = is_new or not self._collate_is_known
        before, self._before = self._before, None
        if len(drawn.indices) > 1 and is_due:
            self._examine_collate(drawn, before)

    def known(self, drawn: Drawn) -> Drawn:
        """Return an item with what was found of all that are made like it."""
        form = self._form
        return replace(
            drawn,
            axes=form.axes,
            lists=form.lists,
            roles_known=form.roles,
            reorders=form.reorders,
            statistics=self._statistics,
        )

    def require_order(self, known: KnownByPlace) -> None:
        """Refuse items of which something is known by the place of their rows where the order is another.

        Raises:
            ProtocolError: collate_fn puts records into another order.
        """
        if self._form.reorders:
            raise ProtocolError(
                f"collate_fn puts records into another order, and {known.what}",
                where="collate_fn",
                cure=f"Keep the records' order in collate_fn (pack_padded_sequence: enforce_sorted=False), or "
                f"{known.cure}",
            )

    def _examine_dataset(self, drawn: Drawn) -> None:
        with self._findings.told():
            self._dataset_reads.examine(drawn)
        if self._dataset_reads.keeps:
            self._on_trust.take(KEPT_BY_DATASET)
        self._on_trust.note(self._dataset_reads.untold)

    def _examine_collate(self, drawn: Drawn, before: State | None) -> None:
        """Probe the collate function; `before`: what it kept before the item was made."""
        collate_fn = drawn.collate_fn or default_collate
        if is_default(collate_fn) and _is_torchs_alone(drawn):
            self._collate_is_known = True
            return
        if any(tensor.is_nested for _, tensor in tensors_at(drawn.item)):
            raise nested_is_given("collate_fn")
        # Asked again after a refusal, it is refused again: from the same state.
        self._before, self._collate_is_known = before, False
        root = functions_of_others() if is_default(collate_fn) else collate_fn
        before = before or State(root, parameters=False, aside=drawn.dataset)
        runs = CollateRuns(collate_fn, before, turn=self._turns)
        found = None
        with kept_values(drawn.item), runs.begun(), self._findings.told():
            found = require_separate_records(runs, drawn, is_first=not self._turns)
        self._turns += 1
        self._on_trust.note([*runs.state.unread, *runs.untold])
        self._before = None
        if found is not None:
            self._collate_is_known = True
            self._form = found
        self._statistics |= runs.statistics - {*self._form.axes, *self._form.roles}


def _is_torchs_alone(drawn: Drawn) -> bool:
    """Return whether torch's own collate function runs no code of others on records like the first one drawn."""
    if functions_of_others():
        return False
    if drawn.records is not None:
        return is_plain(drawn.record(0))
    with forked_randomness([], SEED):  # of a copy: a dataset may keep which record it has read last
        return is_plain(copied_or_itself(drawn.dataset)[drawn.indices[0]])
