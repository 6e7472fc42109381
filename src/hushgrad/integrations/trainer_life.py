"""The life of a private Trainer: its end with the budget, the receipt in its checkpoints, where it goes on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hushgrad.accounting.conditions import Condition
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import CheckpointError, ProtocolError
from hushgrad.extras import needs_extra
from hushgrad.integrations.receipt_file import RECEIPT, write_receipt

with needs_extra("hf", "hushgrad.integrations.transformers"):
    from transformers import EarlyStoppingCallback, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

SELECTED = Condition(
    "selection by evaluation",
    "which of its checkpoints the Trainer kept, or when it stopped, was decided by its evaluation data: what that "
    "choice tells of those records is not counted",
)


class Follower(TrainerCallback):  # type: ignore[misc, unused-ignore]  # untyped where transformers is
    """Ends training with the budget, and leaves a receipt in every checkpoint."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End training with the last step that is paid for."""
        if self._trainer.session.steps_left == 0 and state.global_step < state.max_steps:
            control.should_training_stop = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the callbacks again: some may have come after the session."""
        self._trainer.tell_selection()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the receipt, last of all: a checkpoint without it was never finished."""
        if not args.should_save:  # another process writes what is saved
            return
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        write_receipt(folder, self._trainer.session, guarantee=str(self._trainer.guarantee()))


def selects(args: Any, callbacks: list[Any]) -> bool:
    """Whether evaluation data decides which weights are kept."""
    is_best = args.load_best_model_at_end or args.save_strategy == SaveStrategy.BEST
    return bool(is_best or any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks))


def finished_checkpoint(given: Any, output_dir: str) -> Path | None:
    """Return the folder to resume from: the one that is given, or for True the newest that was written to its end.

    None where there is none.
    """
    if given is not True:
        return Path(given)
    finished = {
        int(number): folder
        for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (number := folder.name.rpartition("-")[2]).isdecimal() and (folder / RECEIPT).is_file()
    }
    return finished[max(finished)] if finished else None


def steps_without_checkpoint(ledger: str | os.PathLike[str], *, is_open: bool) -> int:
    """Return how many steps a run had charged that was killed before its first checkpoint: all of them are lost.

    Raises `CheckpointError` where there is no such run, or it is the one that is open.
    """
    steps = read_ledger(ledger).steps if os.path.lexists(ledger) and not is_open else 0
    if not steps:
        raise CheckpointError(
            "there is no checkpoint of private training in its output folder",
            where="the Trainer",
            cure="Call train() without resume_from_checkpoint, or give the folder and ledger of the run to go on with",
        )
    return steps


def require_unused(ledger: str | os.PathLike[str], *, is_own_folder: bool) -> None:
    """Refuse to begin anew where a ledger holds steps. Raises `ProtocolError`."""
    if os.path.lexists(ledger) and (steps := read_ledger(ledger).steps):
        raise ProtocolError(
            f"its ledger holds {steps} steps of an earlier run",
            where="the Trainer",
            cure="Go on with train(resume_from_checkpoint=True), or give this run "
            + ("an output_dir" if is_own_folder else "a path in Privacy(ledger=...)")
            + " of its own; what both cost adds up",
        )
