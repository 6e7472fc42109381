"""The life of a private Trainer: its end with the budget, the receipt in its checkpoints, where it goes on from."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

from hushgrad.accounting.conditions import Condition
from hushgrad.accounting.ledger.receipt import Receipt
from hushgrad.errors import CheckpointError
from hushgrad.extras import needs_extra
from hushgrad.integrations.receipt_file import RECEIPT, read_receipt, write_receipt
from hushgrad.session.spending import steps_taken

with needs_extra("hf", "hushgrad.integrations.transformers"):
    from transformers import EarlyStoppingCallback, TrainerCallback
    from transformers.trainer import TRAINER_STATE_NAME
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

SELECTED = Condition(
    "selection by evaluation",
    "which of its checkpoints the Trainer kept, when it stopped, or its learning rate was decided by its evaluation "
    "data: what that choice tells of those records is not counted",
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
        write_receipt(folder, self._trainer.session, step=state.global_step, guarantee=str(self._trainer.guarantee()))


def selects(args: Any, callbacks: list[Any], scheduler: Any) -> bool:
    """Whether evaluation data decides which weights are kept, when training ends or how fast it goes."""
    keeps_best = args.metric_for_best_model is not None or args.save_strategy == SaveStrategy.BEST
    stops = any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks)
    return bool(args.load_best_model_at_end or keeps_best or stops or _is_told_metrics(scheduler))


def _is_told_metrics(scheduler: Any) -> bool:
    """Whether a scheduler follows evaluation (`ReduceLROnPlateau`, `GreedyLR`): its `step` takes the metrics."""
    return scheduler is not None and "metrics" in inspect.signature(scheduler.step).parameters


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


def steps_without_checkpoint(ledger: str | os.PathLike[str], phase: str | None, *, is_open: bool) -> int:
    """Return how many steps a run had charged that was killed before its first checkpoint: all of them are lost.

    With a phase, those of the phase.

    Raises `CheckpointError` where there is no such run, or it is the one that is open.
    """
    steps = 0 if is_open else steps_taken(ledger, phase)
    if not steps:
        raise CheckpointError(
            "there is no checkpoint of private training in its output folder",
            where="the Trainer",
            cure="Call train() without resume_from_checkpoint, or give the folder and ledger of the run to go on with",
        )
    return steps


def receipt_of(folder: Path) -> Receipt:
    """Return the receipt of a Trainer's checkpoint. Raises `CheckpointError` where it has none, or another one's."""
    receipt, said = read_receipt(folder)
    try:
        step = json.loads((folder / TRAINER_STATE_NAME).read_bytes())["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        step = None
    if step is None or said.get("step", step) != step:  # an earlier version wrote no step beside the receipt
        raise CheckpointError(
            f"its {RECEIPT} and its {TRAINER_STATE_NAME} are not of one checkpoint",
            where="the checkpoint",
            cure="Resume from another checkpoint, or put back the files that were written together",
        )
    return receipt
