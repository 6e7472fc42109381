"""Which inputs of a call its forward wrote to in a way that torch does not count: through NumPy, DLPack, a storage.

A loop hands the same tensors to its criterion as targets. Writes that torch counts show there; others would give the
criterion targets that the forward has made of the whole batch. So would tensors that it puts into a dictionary, a list
or an object that it was given, and does not return.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from hushgrad.errors import PrivacyUnitError
from hushgrad.guards.probing.state_values import agree
from hushgrad.guards.probing.trees import DESCEND, Path, tensors_at, with_parts
from hushgrad.torch_internals import version


class UncountedWrites:
    """Watches the tensors and arrays that a call is given, until it has returned.

    Args:
        given: `(args, kwargs)`.
        copies: the same with the values of before the call.
    """

    def __init__(self, given: Any, copies: Any) -> None:
        self._given, self._tensors = given, [tensor for _, tensor in tensors_at(given)]
        own = dict(_values_at(copies))
        self._watched = [(path, part, own[path], _version(part)) for path, part in _values_at(given) if path in own]

    def found(self) -> Path | None:
        """Return the path of one that has other values now, and as many counted writes."""
        return next(
            (
                path
                for path, part, before, number in self._watched
                if _version(part) == number and not agree(part, before)
            ),
            None,
        )

    def has_left_more(self, output: Any) -> bool:
        """Return whether what was given holds tensors now that it did not, and that are no part of the output."""
        known = {id(tensor) for tensor in (*self._tensors, *(tensor for _, tensor in tensors_at(output)))}
        return any(id(tensor) not in known for _, tensor in tensors_at(self._given))


LEFT_IN_INPUTS = "tensors that the forward put into a container or an object that it was given, and did not return"


def written(path: Path, where: str) -> PrivacyUnitError:
    """Return the refusal of a forward that wrote to the input at a path."""
    _, name, *rest = path
    parts = "".join(f"[{part!r}]" for part in rest if isinstance(part, (str, int)))
    return PrivacyUnitError(
        f"writes into its input {name!r}{parts} in a way that torch does not count (NumPy, DLPack, .data, a storage), "
        f"so that nothing shows what of the batch the loop's targets hold afterwards",
        where=where,
        cure="Compute a new tensor from the input, or write to it with torch's own operators",
    )


def _values_at(value: Any) -> Iterator[tuple[Path, Tensor | np.ndarray[Any, Any]]]:
    found: list[tuple[Path, Any]] = []

    def visit(path: Path, part: Any) -> Any:
        if isinstance(part, PackedSequence):
            part = part.data
        if not isinstance(part, (Tensor, np.ndarray)):
            return DESCEND
        if not isinstance(part, nn.Parameter) and (isinstance(part, np.ndarray) or _is_plain(part)):
            found.append((path, part))
        return part

    with_parts(value, visit)
    yield from found


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta


def _version(part: Any) -> int | None:
    """Return how often a tensor was written to; arrays do not count it, nor what inference made."""
    return None if isinstance(part, np.ndarray) or part.is_inference() else version(part)
