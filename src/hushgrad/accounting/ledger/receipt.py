"""A receipt of what a run has spent, kept beside its weights: it shows later which ledger those weights belong to.

It holds how far the account went and never a key, a draw or a sum: draws have no position to return to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hushgrad.accounting.ledger.records import LedgerHead
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.arguments import clip_norm, count_of
from hushgrad.errors import CheckpointError, LedgerError

FORMAT = 1

_HASH_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a ledger held at one moment.

    Attributes:
        run: the ledger's own random name.
        steps: how many steps were charged.
        anchor: its last record.
        is_on_disk: whether the ledger was a file, so that what it held can be found again.
        clip_norm: that of the next step, where an adaptive clip rule lets it follow from noised counts; else None.
    """

    run: str
    steps: int
    anchor: LedgerHead
    is_on_disk: bool
    clip_norm: float | None = None

    def as_state(self) -> dict[str, Any]:
        """Return the receipt as plain values, for `state_dict` and JSON."""
        return {
            "format": FORMAT,
            "run": self.run,
            "steps": self.steps,
            "anchor": [self.anchor.seq, self.anchor.hash],
            "is_on_disk": self.is_on_disk,
            **({} if self.clip_norm is None else {"clip_norm": self.clip_norm}),
        }

    @classmethod
    def from_state(cls, state: Any) -> Receipt:
        """Return the receipt that `as_state` made `state` of. Raises `CheckpointError` for anything else."""
        if not isinstance(state, Mapping) or not {"format", "run", "steps", "anchor", "is_on_disk"} <= set(state):
            raise CheckpointError(
                "it holds no receipt of private training, so nobody can say what its weights have cost",
                where="the checkpoint",
                cure="Give what session.state_dict() returned. Weights that were trained in another way are loaded "
                "before make_private",
            )
        if state["format"] != FORMAT:
            raise CheckpointError(
                f"its receipt is not of format {FORMAT}", where="the checkpoint", cure="Read it with a newer version"
            )
        try:
            seq, own_hash = state["anchor"]
            receipt = cls(
                str(state["run"]),
                count_of("steps", state["steps"], minimum=0),
                LedgerHead(count_of("anchor", seq, minimum=0), str(own_hash)),
                state["is_on_disk"] is True,
                None if state.get("clip_norm") is None else clip_norm("clip_norm", state["clip_norm"]),
            )
        except (TypeError, ValueError):
            receipt = None
        if receipt is None or len(receipt.anchor.hash) != _HASH_LENGTH:
            raise CheckpointError(
                "its receipt was damaged or edited", where="the checkpoint", cure="Take another checkpoint"
            )
        return receipt

    def steps_of(self, path: str | os.PathLike[str] | None) -> int:
        """Return how many steps the ledger at `path` holds, which began with those of this receipt.

        Raises:
            LedgerError: the ledger is missing, was cut, or is that of another run; or the receipt is of one in memory.
            CheckpointError: the receipt speaks of more or fewer steps than the ledger held when it was written.
        """
        if not self.is_on_disk:
            raise LedgerError(
                f"the checkpoint was written after {self.steps} steps that were charged in memory only, so epsilon "
                f"would begin at 0 again",
                where="the ledger",
                cure="Train again from the start, with a ledger path (PrivacyEngine(ledger=...))",
            )
        if path is None or not os.path.lexists(path):
            raise LedgerError(
                f"the checkpoint was written after {self.steps} charged steps, and there is no ledger that holds them",
                where="the ledger",
                cure="Pass the path of that run's ledger (PrivacyEngine(ledger=...)); without the file the checkpoint "
                "cannot be continued with a true epsilon",
            )
        if read_ledger(path).run != self.run:
            raise LedgerError(
                f"it is the ledger of another run than the checkpoint's, whose {self.steps} steps it does not hold",
                where="the ledger",
                cure="Pass the path of the ledger that the checkpoint was written beside",
            )
        view = read_ledger(path, self.anchor)
        self.require_steps(view.at_anchor or range(0))
        return view.steps

    def require_steps(self, held: range) -> None:
        """Refuse a receipt of other numbers of steps than its ledger held then. Raises `CheckpointError`."""
        if self.steps not in held:
            raise CheckpointError(
                f"its receipt speaks of {self.steps} steps, and its ledger held {held[-1] if held else 0} when it was "
                f"written: it was edited, or put together of two",
                where="the checkpoint",
                cure="Take another checkpoint, as it was written",
            )
