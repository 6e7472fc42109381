"""Which tensors lie in the memory of the private model: they are looked at elsewhere, whoever holds them."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from hushgrad.torch_internals import HAS_NO_DISPATCH, is_wrapped


class OwnMemory:
    """Knows the parameters and buffers of a model by their memory.

    Args:
        model: the root; None for nothing.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._known: frozenset[int] | None = None

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a plain tensor is a part of the model, or a view of one."""
        if self._known is None:
            self._known = frozenset(part.untyped_storage().data_ptr() for part in self.tensors())
        return tensor.untyped_storage().data_ptr() in self._known

    def tensors(self) -> list[Tensor]:
        """Return the model's parameters and buffers that are plain, and its plain tensor attributes."""
        if self._model is None:
            return []
        parts = chain(self._model.parameters(), self._model.buffers())
        held = (value for module in self._model.modules() for value in vars(module).values())
        return [part for part in chain(parts, held) if isinstance(part, Tensor) and is_plain(part)]

    def forget(self) -> None:
        """Look again: memory may be exchanged between two items."""
        self._known = None


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's values lie in memory of its own kind, and are there; a sharded one would send messages."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_quantized or not has_memory(tensor):
        return False
    return bool(tensor.numel() and tensor.untyped_storage().nbytes())


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor lies in one piece of memory; a sparse, nested, fake, meta or sharded one does not.

    Nor does one that stands for another inside of a transform of `torch.func`.
    """
    if type(tensor).__torch_dispatch__ is not HAS_NO_DISPATCH or is_wrapped(tensor):
        return False
    return tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_meta)
