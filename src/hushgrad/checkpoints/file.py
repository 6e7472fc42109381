"""The file of a checkpoint: tensors in safetensors format, all else as JSON in its header, and no pickle.

One file, replaced in one step: a reader finds the old checkpoint or the new one, also after a crash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from hushgrad.checkpoints.state_tree import damaged, read, written
from hushgrad.errors import CheckpointError
from hushgrad.extras import needs_extra
from hushgrad.result_file import claim_file, replace_file

_KEY = "hushgrad checkpoint"
FORMAT = 1


def write_checkpoint(
    path: str | os.PathLike[str], content: dict[str, Any], require_current: Callable[[], None] = lambda: None
) -> None:
    """Write state dictionaries, by name; return when they are on disk.

    `require_current` is called once their values have been copied, and raises where these have changed meanwhile.

    Raises `CheckpointError` for what cannot be written without pickle, and for a path that cannot be written to.
    """
    with needs_extra("checkpoint", "a checkpoint"):
        import safetensors.torch
    file = claim_file("path", path)
    tensors: dict[str, Tensor] = {}
    try:
        said = {"format": FORMAT, "content": written(content, "", tensors)}
        stored, aliases = _each_once(tensors)
        header = json.dumps({**said, "aliases": aliases})
    except RecursionError:
        raise CheckpointError(
            "a value holds itself, or is nested too deeply",
            where="the checkpoint",
            cure="Keep plain values in state_dict() and extra",
        ) from None
    data = safetensors.torch.save(_apart(stored), metadata={_KEY: header})
    require_current()
    try:
        replace_file(file, data)
    except OSError as error:
        raise CheckpointError(
            f"it could not be written: {error.strerror or type(error).__name__}",
            where="the checkpoint",
            cure="Make room, or choose another path; the last checkpoint is as it was",
        ) from error


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what `write_checkpoint` was given, its tensors on the CPU.

    Raises `CheckpointError` for a file that is missing, damaged or something else.
    """
    with needs_extra("checkpoint", "a checkpoint"):
        import safetensors
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(
            "there is no such file", where="the checkpoint", cure="Pass the path that save_checkpoint was given"
        )
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            said = json.loads((opened.metadata() or {})[_KEY])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
        if said["format"] != FORMAT:
            raise CheckpointError(
                f"it is not of format {FORMAT}", where="the checkpoint", cure="Read it with a newer version of hushgrad"
            )
        tensors |= {name: tensors[first] for name, first in said["aliases"].items()}
        content = said["content"]
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise damaged("its header cannot be read") from error
    found = read(content, tensors)
    if not isinstance(found, dict):
        raise damaged("its values cannot be read")
    return found


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous, and no two of them in the same memory (a buffer and a view of it)."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        value = tensor.cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        found[name] = value.clone() if memory in seen else value
        seen.add(memory)
    return found


def _each_once(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors with those that are one (tied weights) left out, and under which name those are kept."""
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if first.setdefault(place, name) != name:
            aliases[name] = first[place]
    return {name: tensor for name, tensor in tensors.items() if name not in aliases}, aliases
