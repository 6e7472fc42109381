"""Are these the data that a run was begun with? A digest under a random salt, for the run's own folder alone.

A digest of private records, salted or not, is computed without noise: whoever has it and guesses all records can check
the guess. So no checkpoint and no summary holds it, and it is removed with the checkpoint when the run is completed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from hushgrad.errors import DatasetError
from hushgrad.result_file import replace_file
from hushgrad.study.directory import json_text
from hushgrad.study.tasks import Task

FORMAT = 1
_WHERE = "the data"


def write_fingerprint(path: Path, task: Task) -> None:
    """Keep what tells these data from others."""
    salt = os.urandom(32)
    value = {"format": FORMAT, "salt": salt.hex(), "digest": _digest(task, salt), "not_covered": ["digest"]}
    replace_file(path, (json_text(value, indent=2) + "\n").encode())


def require_same_data(path: Path, task: Task) -> None:
    """Raise DatasetError unless the run was begun with the same records, in the same order, and the same classes."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        salt, digest = bytes.fromhex(kept["salt"]), str(kept["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DatasetError(
            "nobody can say whether they are those that the run was begun with: fingerprint.json is missing or damaged",
            where=_WHERE,
            cure="Restore the file from a copy of the run's folder, or begin a new run",
        ) from None
    if not hmac.compare_digest(digest, _digest(task, salt)):
        raise DatasetError(
            "they are not those that the run was begun with",
            where=_WHERE,
            cure="Give --data where those lie, or begin a new run: other records are another account",
        )


def _digest(task: Task, salt: bytes) -> str:
    found = hmac.new(salt, digestmod=hashlib.sha256)
    for name in (task.name, *task.class_names):
        found.update(f"{len(name)} {name} ".encode())
    for examples in (task.train, task.test):
        for tensor in examples.tensors:
            found.update(_as_bytes(tensor))
    return found.hexdigest()


def _as_bytes(tensor: Tensor) -> bytes:
    said = f"{tuple(tensor.shape)} {tensor.dtype} ".encode()
    return said + tensor.contiguous().numpy().tobytes()
