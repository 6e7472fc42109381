"""The life of a private fit of Lightning: where its ledger is, and what its checkpoint's receipt must show of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hushgrad.accounting.ledger.receipt import Receipt
from hushgrad.errors import CheckpointError
from hushgrad.integrations.used_ledger import require_unused
from hushgrad.parallel.messages import told_by_first
from hushgrad.parallel.world import join_world
from hushgrad.privacy import Privacy


def ledger_of(trainer: Any, privacy: Privacy) -> str | os.PathLike[str] | None:
    """Return the path of the ledger of a fit; None for a `fast_dev_run`, which keeps nothing."""
    if privacy.ledger is not None:
        return privacy.ledger
    return None if trainer.fast_dev_run else Path(trainer.default_root_dir, "ledger.jsonl")


def receipt_of(trainer: Any, privacy: Privacy, state_key: str) -> Receipt | None:
    """Return the receipt of the checkpoint that a fit goes on from, once the ledger shows its steps; None without one.

    Args:
        trainer: of Lightning, which has just read that file.
        privacy: says where the ledger is.
        state_key: the name of the callback's state in the checkpoint.

    Raises:
        CheckpointError: it was not written by private training, or its receipt was edited.
        LedgerError: the ledger does not hold its steps.
    """
    if trainer.ckpt_path is None:
        return None
    # Lightning has just read this file, with the caller's own weights_only: it brings nothing that was not run.
    checkpoint = trainer.strategy.load_checkpoint(trainer.ckpt_path, weights_only=False)
    state = checkpoint.get("callbacks", {}).get(state_key)
    if state is None:
        raise CheckpointError(
            "it was not written by private training, so nobody can say what its weights have cost",
            where="the checkpoint",
            cure="Resume from another checkpoint. Weights of ordinary training are loaded into the module before "
            "fit, which is then called without ckpt_path",
        )
    receipt = Receipt.from_state(state)
    told_by_first(join_world(), "look at a receipt", lambda: receipt.steps_of(ledger_of(trainer, privacy)))
    return receipt


def require_new(trainer: Any, privacy: Privacy) -> None:
    """Refuse a fit that begins anew beside the ledger of an earlier one. Raises `ProtocolError`."""
    resume = "trainer.fit(..., ckpt_path=...), or without a checkpoint with PrivateTraining(..., may_restart=True)"

    def look() -> None:
        ledger = ledger_of(trainer, privacy)
        require_unused(ledger, privacy, where="Lightning", resume=resume, folder="a default_root_dir")

    told_by_first(join_world(), "look at the ledger", look)
