"""The IDX format of the MNIST files: a magic number, the sizes, and the bytes."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch
from torch import Tensor

from hushgrad.errors import TaskDataError
from hushgrad.printable import printable
from hushgrad.study.tasks.files import MAX_BYTES, read_bytes

UNSIGNED_BYTE = 0x08

FETCH = "Fetch the file again"


def parse_idx(content: bytes, *, dimensions: int, name: str = "data") -> Tensor:
    """Return the array that IDX bytes hold, as a uint8 tensor with `dimensions` dimensions.

    The format (Yann LeCun's MNIST page): two zero bytes, the element type, the number of dimensions, one big-endian
    uint32 per dimension, then the elements, last dimension fastest. Only unsigned bytes are accepted. Raises
    TaskDataError, naming `name`, unless header and length agree exactly.
    """
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise TaskDataError(
            f"it must start with an IDX header of {header} bytes, got {len(content)} bytes",
            where=repr(name),
            cure=FETCH,
        )
    zeros, kind, count = struct.unpack(">HBB", content[:4])
    if zeros != 0 or kind != UNSIGNED_BYTE or count != dimensions:
        raise TaskDataError(
            f"it must have the IDX magic number 0x{UNSIGNED_BYTE << 8 | dimensions:08x} "
            f"(unsigned bytes, {dimensions} dimensions), got 0x{content[:4].hex()}",
            where=repr(name),
            cure=FETCH,
        )
    sizes = struct.unpack(f">{dimensions}I", content[4:header])
    if 0 in sizes:
        raise TaskDataError(f"it must not be empty, its sizes are {sizes}", where=repr(name), cure=FETCH)
    if math.prod(sizes) != len(content) - header:
        raise TaskDataError(
            f"it must hold {math.prod(sizes)} bytes after its header for the sizes {sizes}, "
            f"got {len(content) - header}",
            where=repr(name),
            cure=FETCH,
        )
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(sizes)


def read_idx(path: Path, *, dimensions: int, limit: int = MAX_BYTES) -> Tensor:
    """Return the array in an IDX file, `.gz` or not; see `parse_idx` for what is checked."""
    return parse_idx(read_bytes(path, limit=limit), dimensions=dimensions, name=printable(path.name))
