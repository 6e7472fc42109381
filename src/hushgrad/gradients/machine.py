"""What arithmetic and memory cost on a machine: the constants by which the cheapest way is chosen.

All ways are exact, so no result depends on these constants beyond rounding. Those in the package were measured on two
cores of a server processor. `hushgrad machine --measure` measures this machine once and writes its constants to a file;
from then on that file decides.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import torch

from hushgrad.errors import InvalidArgumentError

FILE_VARIABLE = "HUSHGRAD_MACHINE"

NO_LIMIT = 1 << 56
"""More bytes than there are."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Times in nanoseconds, and three budgets.

    Attributes:
        multiply_add: one multiplication and addition in a matrix product.
        gram_multiply_add: one in the Gram matrices of an outer product, of which only blocks on and above the diagonal
            are computed; counted as if all were.
        formed: one value of a per-example gradient that is formed by a matrix product and kept: writing it, its
            square, and its part in the sum, beyond the operations of the product.
        convolved: the same where convolutions form it.
        unfolded: one value of an input that is unfolded.
        moved: one value that an element-wise operation reads and writes.
        keep_bytes: how much memory per-example gradients of one physical batch may take beyond the operands in whose
            place they are kept.
        sum_bytes: how much memory the clipped sums of a sharded model may take whole in each process, until they are
            exchanged once, at the end of the logical batch. Where they take more, parts are exchanged after each item.
        operand_bytes: how much memory the operands of one physical batch may take in each process, until its norms are
            known. Where they take more, norms and sums are taken inside the backward. As shipped there is no limit.
    """

    multiply_add: float
    gram_multiply_add: float
    formed: float
    convolved: float
    unfolded: float
    moved: float
    keep_bytes: int
    sum_bytes: int = 1 << 30
    operand_bytes: int = NO_LIMIT

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                got = value if isinstance(value, (int, float)) else type(value).__name__
                raise InvalidArgumentError(
                    f"must be a finite number >= 0, got {got}",
                    where=f"{field.name} of a machine",
                    cure="Measure it with hushgrad machine --measure",
                )


CPU = Machine(
    multiply_add=0.0105,
    gram_multiply_add=0.0078,
    formed=0.3,
    convolved=0.5,
    unfolded=0.8,
    moved=0.3,
    keep_bytes=1 << 28,
)
"""Two cores of an AMD EPYC with AVX-512, float32."""

GPU = Machine(
    multiply_add=2e-5,
    gram_multiply_add=2e-5,
    formed=2.5e-2,
    convolved=5e-2,
    unfolded=5e-3,
    moved=3e-3,
    keep_bytes=1 << 30,
    sum_bytes=1 << 32,
)
"""Not measured: ratios such that Gram matrices and gradients cost the same near 600 positions."""


def machine_of(device: torch.device) -> Machine:
    """Return the constants of a device: from this machine's file, where it names the device, else those shipped.

    Raises:
        InvalidArgumentError: the file cannot be read.
    """
    return _in_file(machine_file()).get(device.type, CPU if device.type == "cpu" else GPU)


def is_measured(device: torch.device) -> bool:
    """Return whether this machine's file names the device."""
    return device.type in _in_file(machine_file())


def machine_file() -> Path:
    """Return where this machine's constants are kept: HUSHGRAD_MACHINE, or the user's cache folder."""
    named = os.environ.get(FILE_VARIABLE)
    if named:
        return Path(named)
    cache_folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_folder) / "hushgrad" / "machine.json"


@cache
def _in_file(path: Path) -> Mapping[str, Machine]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if os.environ.get(FILE_VARIABLE):
            raise InvalidArgumentError(
                "it names a file that does not exist", where=FILE_VARIABLE, cure="Unset it, or write the file"
            ) from None
        return {}
    except OSError as error:
        raise _unreadable(path) from error
    try:
        return {device: Machine(**constants) for device, constants in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> InvalidArgumentError:
    return InvalidArgumentError(
        "it does not hold the constants of a machine",
        where=str(path),
        cure="Run `hushgrad machine --measure` again, or delete the file",
    )


def write_machine(device: str, machine: Machine) -> Path:
    """Keep the constants of a device in this machine's file, and return the file."""
    path = machine_file()
    known = dict(_in_file(path)) if path.exists() else {}
    known[device] = machine
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps({name: asdict(value) for name, value in known.items()}, indent=2) + "\n", "utf-8")
    draft.replace(path)
    _in_file.cache_clear()
    return path
