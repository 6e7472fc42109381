"""State dictionaries as JSON and named tensors, and back: what a pickle would hold, without running code.

JSON has fewer kinds than Python, so everything but numbers, text, None and lists is a mapping of one key that says what
it is: {"dict": [[key, value], …]}, {"tuple": […]}, {"tensor": name}.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hushgrad.errors import CheckpointError

_PLAIN = (str, int, float, bool, type(None))


def written(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON, and put its tensors into `tensors`, named by their place under `where`.

    A number of NumPy's becomes Python's. Raises `CheckpointError` for a value that is neither plain data nor a dense
    tensor.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.dtype is torch.complex128:
            raise _unwritable(value, where)
        name = where
        while name in tensors:  # "a.b" and "b" within "a", 1 and "1" are different places
            name += "'"
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, np.number | np.bool_) and type(value.item()) in _PLAIN:
        return value.item()  # what a schedule that is written with NumPy makes of a learning rate
    if isinstance(value, dict):  # an OrderedDict, too
        return {
            "dict": [
                [written(key, f"{where}.key", tensors), written(inner, f"{where}.{key}", tensors)]
                for key, inner in value.items()
            ]
        }
    if type(value) in (list, tuple):
        parts = [written(inner, f"{where}.{place}", tensors) for place, inner in enumerate(value)]
        return parts if type(value) is list else {"tuple": parts}
    raise _unwritable(value, where)


def read(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return what `written` was given. Raises `CheckpointError` for JSON that it did not write."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, list):
        return [read(inner, tensors) for inner in value]
    try:
        ((kind, inner),) = value.items()
        if kind == "tensor":
            return tensors[inner]
        if kind == "tuple":
            return tuple(read(part, tensors) for part in inner)
        if kind == "dict":
            return {read(key, tensors): read(part, tensors) for key, part in inner}
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise damaged("its values cannot be read")


def damaged(what: str) -> CheckpointError:
    """Return the refusal of a file that is no whole checkpoint."""
    return CheckpointError(
        f"{what}: it is no checkpoint of hushgrad, or was damaged",
        where="the checkpoint",
        cure="Take another checkpoint of the same run; its ledger stays as it is",
    )


def _unwritable(value: Any, where: str) -> CheckpointError:
    kind = f"tensor of {value.dtype} ({value.layout})" if isinstance(value, Tensor) else type(value).__name__
    return CheckpointError(
        f"a {kind} cannot be written without pickle",
        where=where,
        cure="Keep plain values and dense tensors in state_dict(): numbers, text, lists, tuples, dictionaries",
    )
