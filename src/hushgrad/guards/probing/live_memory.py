"""Which memory holds values of a batch: tensors are told by it that no call of the loop's has shown to have any.

A view of a tensor that is written to later, `.data`, `set_`, running statistics: the same memory, another tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hushgrad.guards.probing.own_memory import has_memory
from hushgrad.torch_internals import StorageWeakRef, storage_handle, unseen, version

UNSEEN_MEMORY = "a tensor lies in memory of the batch in a way that cannot be run again"
WRITTEN_UNSEEN = "a tensor was written to by what is not seen"

MOST_COMPARED = 1 << 16
"""Larger arguments are told to have been written to by torch's count alone: statistics have one value a channel."""

SETTERS = {"data", "grad", "real", "imag"}
"""Attributes of a tensor that take another one's values."""


def sets_values(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Return whether a call writes values of its last argument to an attribute of a tensor."""
    name = getattr(func, "__name__", "")
    if name != "__set__" or getattr(getattr(func, "__self__", None), "__name__", "") not in SETTERS:
        return False
    return isinstance(args[-1], Tensor)


@dataclass(frozen=True, eq=False)
class View:
    """Where a tensor lies in another one's memory: `start` values behind that one's first."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    requires_grad: bool


def shared(owner: Tensor, view: View) -> Tensor:
    """Return a tensor in the memory of another one."""
    owner = owner if view.requires_grad else owner.detach()
    return owner.as_strided(view.shape, view.strides, owner.storage_offset() + view.start)


@dataclass(frozen=True, eq=False)
class _Owner:
    """A tensor of the program by whose number its memory is known; the weak reference keeps its address its own.

    `is_told`: whether places in this memory are places in a copy of the tensor.
    """

    memory: StorageWeakRef
    slot: int
    dtype: torch.dtype
    offset: int
    length: int
    is_told: bool


class LiveMemory:
    """The memory of tensors with values of one item."""

    def __init__(self) -> None:
        self._owners: dict[int, _Owner] = {}
        self._has_taken = False  # whether memory came in that was there before

    def clear(self) -> None:
        """Forget all."""
        self._owners.clear()

    def note(self, made: Iterable[tuple[Tensor, int]], foreign: Sequence[Tensor] = ()) -> None:
        """A call made tensors of the batch, with these numbers; what lies in the memory of `foreign` ones is a view."""
        with unseen():
            others = {handle for tensor in foreign if (handle := _handle(tensor)) is not None}
            for tensor, slot in made:
                if (handle := _handle(tensor)) is not None and handle not in others and handle not in self._owners:
                    self._owners[handle] = _owner(tensor, slot)

    def take(self, tensor: Tensor, slot: int) -> bool:
        """Values of the batch were written to a tensor; return whether others than torch may read its memory."""
        with unseen():
            if (handle := _handle(tensor)) is None:
                self._has_taken = True
                return False
            if handle not in self._owners:
                self._has_taken = True
                self._owners[handle] = _owner(tensor, slot)
            for other, owner in self._owners.items():  # `data` may be other memory now
                if other != handle and owner.slot == slot:
                    self._owners[other] = replace(owner, is_told=False)
            return not tensor.untyped_storage().resizable()

    def note_unread(self, tensor: Tensor, slot: int) -> None:
        """A tensor may hold values of the batch that no call shows: a gradient of the loop's own.

        `slot`: a number that no tensor of the program has.
        """
        with unseen():
            if (handle := _handle(tensor)) is not None and handle not in self._owners:
                self._owners[handle] = replace(_owner(tensor, slot), is_told=False)

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor lies in such memory, or may where nothing shows in which."""
        if not self._owners:
            return False
        with unseen():
            handle = _handle(tensor)
            return self._has_taken and not tensor.is_meta if handle is None else handle in self._owners

    def found(self, tensor: Tensor) -> tuple[int, View] | None:
        """Return whose memory a tensor lies in, and where; None if that cannot be said."""
        with unseen():
            handle = _handle(tensor)
            return None if handle is None else _view(tensor, self._owners[handle])

    def begin(self, tensor: Tensor, base: Tensor, slot: int) -> tuple[int, View] | None:
        """Values are going to be written to a view of `base`, which has this number.

        Returns where it lies there; None if that cannot be said.
        """
        with unseen():
            handle = _handle(base)
            if handle is None or handle != _handle(tensor) or (view := _view(tensor, _owner(base, slot))) is None:
                return None
            self._has_taken = True
            self._owners[handle] = _owner(base, slot)
            return view


class Written:
    """What a call is given that holds nothing of the batch: which of it does the call write to?

    Some kernels write to arguments that torch's count knows nothing of (running statistics): these are compared.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        with unseen():
            self._before = [(tensor, version(tensor), _copy(tensor)) for tensor in given]

    @property
    def tensors(self) -> Iterator[Tensor]:
        """What it is given."""
        return (tensor for tensor, _, _ in self._before)

    def changed(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield what was written to, and what it held before, None where that is not known."""
        with unseen():
            for tensor, count, copy in self._before:
                if version(tensor) != count or (copy is not None and not _is_same(tensor, copy)):
                    yield tensor, copy


def _handle(tensor: Tensor) -> int | None:
    return storage_handle(tensor.untyped_storage()) if has_memory(tensor) else None


def _owner(tensor: Tensor, slot: int) -> _Owner:
    memory = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    return _Owner(memory, slot, tensor.dtype, int(tensor.storage_offset()), tensor.numel(), tensor.is_contiguous())


def _view(tensor: Tensor, owner: _Owner) -> tuple[int, View] | None:
    start = int(tensor.storage_offset()) - owner.offset
    last = start + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if (
        not owner.is_told
        or tensor.dtype != owner.dtype
        or start < 0
        or last >= owner.length
        or tensor.is_conj()
        or tensor.is_neg()
    ):
        return None
    return owner.slot, View(tuple(tensor.shape), tensor.stride(), start, tensor.requires_grad)


def _copy(tensor: Tensor) -> Tensor | None:
    if not has_memory(tensor) or tensor.is_quantized or tensor.requires_grad or tensor.numel() > MOST_COMPARED:
        return None
    return tensor.clone() if not tensor.numel() or tensor.untyped_storage().nbytes() else None  # given back, by FSDP


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits: NaN is as NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(*(part.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8) for part in (one, other)))
