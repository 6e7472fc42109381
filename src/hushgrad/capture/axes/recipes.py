"""How a piece of the batch was made: pieces are put together only where all of them were made alike.

`torch.stack([layer(row) for row in x])` treats every example alike. `torch.stack([layer(row) * i for i, row in
enumerate(x)])` does not: when one record leaves, those behind it move up and are treated otherwise, so that more than
its own gradient changes. The recipe of a piece is a digest of how it was cut and of the calls that followed, with their
constant arguments; that of x[0] and of x[1] is the same, that of `x[1] * 2` another one.
"""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.rules import OperatorCall
from hushgrad.torch_internals import version

BY_VALUE = 1 << 16
"""Constants up to this size are compared by their values; larger ones must be the same tensor."""

PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))
"""Arguments whose `repr` says all of them."""

Recipe = str


def digest(*parts: Any) -> Recipe:
    """Return a digest of things that have a `repr` of their own."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


class Identities:
    """Numbers that tell tensors apart for the length of a forward, also where one stands at the address of another."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._writes: dict[int, int] = {}

    def wrote(self, tensor: Tensor) -> None:
        """Values of the batch were changed in place: what is cut from this memory from now on is something else."""
        if tensor.layout == torch.strided:
            memory = tensor.untyped_storage().data_ptr()
            self._writes[memory] = self._writes.get(memory, 0) + 1

    def now(self, tensor: Tensor) -> tuple[int, int]:
        """Return what tells a tensor of the batch from all others, and from itself before a change in place."""
        memory = tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0
        return self.of(tensor), self._writes.get(memory, 0)

    def of(self, tensor: Tensor) -> int:
        """Return the number of a tensor."""
        known = self._known.get(id(tensor))
        if known is None or known[0]() is not tensor:
            known = self._known[id(tensor)] = (weakref.ref(tensor), next(self._numbers))
        return known[1]

    def new(self) -> int:
        """Return a number that nothing has."""
        return next(self._numbers)

    def clear(self) -> None:
        """Forget all tensors."""
        self._known.clear()
        self._writes.clear()


def recipe_of_call(
    call: OperatorCall, output_index: int, recipe_of: Callable[[Tensor], Recipe | None], identities: Identities
) -> Recipe:
    """Return the recipe of an output of a call that takes pieces."""

    def part(value: Any) -> Any:
        if isinstance(value, Tensor):
            return recipe_of(value) or _constant(value, identities)
        if isinstance(value, (tuple, list)):
            return [part(inner) for inner in value]
        if isinstance(value, slice):
            return "slice", part([value.start, value.stop, value.step])
        return repr(value) if value is Ellipsis or isinstance(value, PLAIN) else identities.new()

    named = [(key, part(value)) for key, value in sorted(call.kwargs.items())]
    return digest(repr(call.func), output_index, [part(value) for value in call.args], named)


def _constant(value: Tensor, identities: Identities) -> Any:
    if (value.requires_grad and value.is_leaf) or value.numel() > BY_VALUE or value.layout != torch.strided:
        return identities.of(value), version(value)
    # What was derived from parameters holds their names (`derivation.py`).
    name = getattr(value.grad_fn, "leaf_name", None) if value.requires_grad else None
    values = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    content = bytes(values.view(torch.uint8).tolist()) if values.numel() else b""
    return name, value.dtype, tuple(value.shape), hashlib.blake2b(content).hexdigest()
