"""Tensors that were declared public: constants that a model is given beside its batch.

A causal mask `[T, T]`, class features `[C, d]`, weights `[C]`: nothing in their shape tells them from what a loop has
computed from the batch (class means, counts of its labels). So they are constants only where the caller says so, before
a batch was handed out, and as long as they hold what they held then.

Told by identity: the same object. A view or a copy is another tensor, and may be of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hushgrad.errors import ContractChangedError, InvalidArgumentError, ProtocolError

WHERE = "session.public"


class PublicTensors:
    """Those of one session.

    Guarantee: what is taken for a constant is a tensor that was declared before the first batch was handed out, with
    the values that it had then.
    """

    def __init__(self) -> None:
        self._declared: dict[int, tuple[Tensor, Tensor]] = {}  # held, so that no other tensor can have its address
        self._is_late = False

    def __bool__(self) -> bool:
        """Whether any were declared."""
        return bool(self._declared)

    def batch_comes(self) -> None:
        """A batch is handed out: what is declared from here on may hold its values."""
        self._is_late = True

    def declare(self, tensor: Tensor) -> None:
        """Take a tensor for a constant from here on; see `Session.public`."""
        if not isinstance(tensor, Tensor):
            raise InvalidArgumentError(
                f"must be a tensor, got {type(tensor).__name__}",
                where=WHERE,
                cure="Pass the tensor that the model is given; numbers and texts need no declaration",
            )
        if tensor.requires_grad:
            raise InvalidArgumentError(
                "the tensor requires gradients, so it is trained, or was computed from what is",
                where=WHERE,
                cure="Declare a constant (tensor.detach()); what is trained belongs in the model",
            )
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
            raise InvalidArgumentError(
                "the tensor is sparse, nested or without memory", where=WHERE, cure="Pass an ordinary (dense) tensor"
            )
        if self.holds(tensor):
            self._require_unchanged(*self._declared[id(tensor)])
            return
        if self._is_late:
            raise ProtocolError(
                "a tensor is declared after the first batch was handed out, whose values it may hold",
                where=WHERE,
                cure="Make it and declare it right after make_private, before the loop, and give the model that object "
                "(for masks of several lengths, declare one of each)",
            )
        self._declared[id(tensor)] = (tensor, tensor.clone())

    def holds(self, tensor: Tensor) -> bool:
        """Return whether this very tensor was declared."""
        return id(tensor) in self._declared

    def met(self, tensor: Tensor) -> bool:
        """Return whether this very tensor was declared, and holds what it held then.

        Raises:
            ContractChangedError: it was written to.
        """
        if not self._declared or id(tensor) not in self._declared:
            return False
        self._require_unchanged(*self._declared[id(tensor)])
        return True

    def require_unchanged(self) -> None:
        """Refuse a tensor that was written to since it was declared.

        Raises:
            ContractChangedError: of its shape.
        """
        for tensor, before in self._declared.values():
            self._require_unchanged(tensor, before)

    @staticmethod
    def _require_unchanged(tensor: Tensor, before: Tensor) -> None:
        is_same = tensor.shape == before.shape and tensor.dtype == before.dtype and tensor.device == before.device
        if is_same and (torch.equal(tensor, before) or _are_equal(tensor, before)):
            return
        raise ContractChangedError(
            f"a tensor of shape {list(before.shape)} that was declared public was written to since",
            where=WHERE,
            cure="Declare a constant and write to it no more. What follows from the batch, and changes with it, is "
            "computed for each record inside the forward",
        )


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same; NaN is itself."""
    return bool(((one == other) | ((one != one) & (other != other))).all())
