"""The file of a model: its parameters as safetensors, what its header says, and the digest that a summary keeps of it.

The digest is of names, shapes and values, not of the words in the header: those say which steps and which ε, are
compared by themselves, and stand in another order each time.
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
    """What a model file holds: how many numbers, the words that it was written with, and the digest of the rest."""

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
            raise InvalidArgumentError("model.safetensors is damaged: its header cannot be read") from error
        return ModelContent(parameters, words, _digest(header, stream))


def _header(stream: BinaryIO) -> dict[str, Any]:
    start = stream.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < length <= _MOST_BYTES_OF_A_HEADER:
        raise InvalidArgumentError("model.safetensors is damaged: its header has no possible length")
    try:
        header = json.loads(stream.read(length))
    except ValueError as error:
        raise InvalidArgumentError("model.safetensors is damaged: its header cannot be read") from error
    if not isinstance(header, dict):
        raise InvalidArgumentError("model.safetensors is damaged: its header cannot be read")
    return header


def _digest(header: dict[str, Any], values: BinaryIO) -> str:
    tensors = {name: tensor for name, tensor in header.items() if name != _WORDS}
    found = hashlib.sha256(json.dumps(tensors, sort_keys=True).encode())
    while part := values.read(_CHUNK):
        found.update(part)
    return found.hexdigest()
