"""The file of a model: its parameters as safetensors, the words in its header, and its digest, which a summary keeps.

The digest covers names, shapes and values, and not the words in the header, which tell steps and ε. Those are compared
by themselves, and their order differs from one writing to the next.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import nn

from hushgrad.errors import InvalidArgumentError
from hushgrad.extras import needs_extra

_WORDS = "__metadata__"
_MOST_BYTES_OF_A_HEADER = 100_000_000
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelContent:
    """The content of a model file: how many parameters, the words in its header, and the digest of the rest."""

    parameters: int
    words: Mapping[str, str]
    digest: str


def as_bytes(model: nn.Module, words: dict[str, str] | None = None) -> bytes:
    """Return parameters and buffers in safetensors format, with `words` in the header."""
    with needs_extra("study", "model.safetensors"):
        import safetensors.torch
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(tensors, metadata=words)


def digest_of(model: nn.Module) -> str:
    """Return the digest that the file of `model` will have, in hexadecimal."""
    stream = io.BytesIO(as_bytes(model))
    return _digest(_header(stream), stream)


def read_model(path: Path) -> ModelContent | None:
    """Return what a model file holds; None where there is no file. Raises InvalidArgumentError for a damaged one."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        header = _header(stream)
        try:
            words = {str(key): str(value) for key, value in header.pop(_WORDS, {}).items()}
            parameters = sum(int(math.prod(tensor["shape"])) for tensor in header.values())
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged("cannot be read") from error
        return ModelContent(parameters, words, _digest(header, stream))


def _header(stream: BinaryIO) -> dict[str, Any]:
    start = stream.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < length <= _MOST_BYTES_OF_A_HEADER:
        raise _damaged("has an impossible length")
    try:
        header = json.loads(stream.read(length))
    except ValueError as error:
        raise _damaged("cannot be read") from error
    if not isinstance(header, dict):
        raise _damaged("cannot be read")
    return header


def _damaged(what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the file is damaged: its header {what}",
        where="model.safetensors",
        cure="Restore it from a copy, or train anew",
    )


def _digest(header: dict[str, Any], values: BinaryIO) -> str:
    tensors = {name: tensor for name, tensor in header.items() if name != _WORDS}
    found = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())
    while part := values.read(_CHUNK):
        found.update(part)
    return found.hexdigest()
