"""Values that enter a loop's program from outside of torch's calls: made in Python, in NumPy, or by another thread.

Nothing shows what they were computed from. A constant of the loop's own is the same tensor in each item; what was made
anew for this one may hold anything that the item held as lists, arrays and texts, or that another thread was handed.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hushgrad.guards.probing.constants import Constants
from hushgrad.guards.probing.loss_program import tensors_of
from hushgrad.guards.probing.trees import DESCEND, Path, with_parts

FROM_PYTHON = {
    "tensor",
    "as_tensor",
    "asarray",
    "new_tensor",
    "scalar_tensor",
    "full",
    "full_like",
    "new_full",
    "fill_",
}
"""Calls that make a tensor of Python's numbers."""

MOST_COMPARED = 1 << 22
"""Larger arrays of an item are told by their memory alone."""


class OutsideValues:
    """The values of one item's program that torch's calls in its thread have not made.

    Args:
        item: what the loop was handed.
        constants: those of the loop, which are told from item to item.
    """

    def __init__(self, item: Any, constants: Constants) -> None:
        self._constants = constants
        self._made: dict[int, _Quiet] = {}
        self._readable: list[tuple[Path, Any]] = []
        self.is_readable = False
        """Whether the item holds numbers or texts that Python can read without a call of torch's."""
        self.has_come = False
        """Whether a tensor that was made of Python's numbers entered the program of such an item."""
        with_parts(item, self._visit)

    def _visit(self, path: Path, part: Any) -> Any:
        if isinstance(part, np.ndarray) or _is_list_of_numbers(part):
            self._readable.append((path, part))
        elif not isinstance(part, (int, float, complex, str, bytes, np.generic)):
            return DESCEND if not isinstance(part, Tensor) else part
        self.is_readable = True
        return part

    def path_in_item(self, tensor: Tensor) -> Path | None:
        """Return where the item holds the values of a tensor as an array or a list; None where it does not."""
        return next((path for path, part in self._readable if _is_copy(tensor, part)), None)

    def note(self, name: str, given: Any, result: Any) -> None:
        """A call of the loop's with this name, into which nothing of the batch goes, has made this."""
        is_python = name in FROM_PYTHON
        roots: tuple[weakref.ref[Tensor], ...] = ()
        for tensor in tensors_of(given):
            made = self._made_before(tensor)
            is_python = is_python or (made is not None and made.is_python)
            if made is not None or not tensor.requires_grad:
                roots += (weakref.ref(tensor),) if made is None else made.roots
        for tensor in tensors_of(result):
            self._made[id(tensor)] = _Quiet(weakref.ref(tensor), is_python, roots)

    def meet(self, tensor: Tensor) -> None:
        """The program, or the model's inputs, hold a tensor that no call on the batch has made."""
        if tensor.requires_grad:
            return
        made = self._made_before(tensor)
        if made is None:
            self._constants.meet(tensor)
            return
        self.has_come = self.has_come or (made.is_python and self.is_readable)
        for root in made.roots:
            self._constants.meet(root())

    def _made_before(self, tensor: Tensor) -> _Quiet | None:
        made = self._made.get(id(tensor))
        return made if made is not None and made.tensor() is tensor else None


class _Quiet(NamedTuple):
    """What a call made of nothing of the batch; `roots` are tensors that went in and that no call was seen to make."""

    tensor: weakref.ref[Tensor]
    is_python: bool
    roots: tuple[weakref.ref[Tensor], ...]


def _is_list_of_numbers(part: Any) -> bool:
    if not isinstance(part, (list, tuple)):
        return False
    while isinstance(part, (list, tuple)) and part:
        part = part[0]
    return isinstance(part, (int, float, complex, np.generic))


def _is_copy(tensor: Tensor, part: Any) -> bool:
    """Whether a tensor holds the values of an array or of nested lists, in whatever precision."""
    is_array = isinstance(part, np.ndarray) and tensor.shape == part.shape and tensor.device.type == "cpu"
    if is_array and tensor.data_ptr() == part.ctypes.data:
        return True
    if not tensor.ndim or tensor.shape[0] != len(part) or tensor.numel() > MOST_COMPARED:
        return False
    try:
        values = torch.as_tensor(part).to(tensor.device, tensor.dtype)
    except (TypeError, ValueError, RuntimeError):  # of several lengths, or no numbers
        return False
    return values.shape == tensor.shape and torch.equal(values, tensor.detach())
