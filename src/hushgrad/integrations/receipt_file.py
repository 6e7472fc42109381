"""The receipt of a session beside the weights that a framework saves: one small file in the checkpoint's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hushgrad.accounting.ledger.receipt import Receipt
from hushgrad.errors import CheckpointError
from hushgrad.result_file import replace_file
from hushgrad.session.session import Session

RECEIPT = "hushgrad.json"
"""The file of a checkpoint that says what it has cost."""


def write_receipt(folder: Path, session: Session, **more: str | int) -> None:
    """Write what a session's weights have cost into the folder that they are saved to."""
    said: dict[str, Any] = {"receipt": session.state_dict(), **more}
    replace_file(folder / RECEIPT, (json.dumps(said, indent=1) + "\n").encode())


def read_receipt(folder: Path) -> tuple[Receipt, Any]:
    """Return the receipt in a folder, and what was written with it. Raises `CheckpointError` where there is none."""
    try:
        said = json.loads((folder / RECEIPT).read_bytes())
    except (OSError, ValueError):
        said = None
    if not isinstance(said, dict):
        raise CheckpointError(
            f"it holds no {RECEIPT}: it was not written by private training, or not to its end, so nobody can say what "
            f"its weights have cost",
            where="the checkpoint",
            cure="Resume from another checkpoint. Weights of ordinary training are loaded into the model before it is "
            "made private",
        )
    return Receipt.from_state(said.get("receipt")), said
