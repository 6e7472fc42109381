"""Which calls of the model are due: of a model that was not examined as it is now, and those that are looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from torch import nn

from hushgrad.capture.axes.layout import Path, Role
from hushgrad.capture.public import PublicTensors
from hushgrad.guards.probing.calls import Call
from hushgrad.guards.probing.kept_calls import KeptCalls, Pending, Signature, signature_of
from hushgrad.guards.probing.looks import Looks
from hushgrad.guards.probing.novelty import Novelty
from hushgrad.guards.probing.rows import Batch, batch_axes
from hushgrad.guards.probing.trees import tensors_at

RolesOf = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Mapping[Path, Role]]
"""What the inputs of a module hold: `roles_of(module, args, kwargs)`."""


class DueCalls:
    """The calls of the batch in work that have to be examined, and which models were examined through one session.

    A model stays due until it was examined on more than one example, and is due again as soon as its modules, their
    modes or their hooks have changed, or a parameter that was frozen then is trained.

    Args:
        model: the root.
        parameters: what is trained.
        looks: decides which calls of an examined model are looked at again.
        public: what was declared, and is no part of any batch.

    Attributes:
        novelty: what is known of the inputs of earlier batches.
        axes: of each module's inputs, by their paths, the axes of the examples, as examinations found them.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], looks: Looks, public: PublicTensors | None = None
    ) -> None:
        self._model = model
        self._kept = KeptCalls(model, list(parameters), looks, public)
        self._examined: dict[Signature, bool] = {}  # whether on more than one example
        self._frozen: dict[Signature, list[nn.Parameter]] = {}  # what was frozen then
        self.novelty = Novelty()
        self.axes: dict[nn.Module, Mapping[Path, int]] = {}

    def begun(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], item_lengths: Set[int]
    ) -> Pending | None:
        """A call begins; return what is kept of it. `item_lengths`: of the second axes of the loader's item."""
        signature = signature_of(self._model)
        if self._frozen and any(parameter.requires_grad for parameter in self._frozen.get(signature, ())):
            self._examined.pop(signature)
            self._frozen.pop(signature)
        is_known = self._examined.get(signature, False)
        is_new = self.novelty.note(module, (args, kwargs), self.axes.get(module, {}), item_lengths) and is_known
        return self._kept.begun(module, args, kwargs, signature, is_known=is_known, is_new=is_new)

    @property
    def kept(self) -> list[Pending]:
        """What is kept of the batch in work, those of which all examples are run again first."""
        return [*self._kept.whole, *self._kept.in_part]

    def of_size(self, size: int) -> list[Call]:
        """Return those whose inputs hold as many examples as there are losses."""
        return [part.call for part in self.kept if _holds(part.call.inputs, size)]

    def rows_to_compare(self, size: int, roles_of: RolesOf) -> list[int]:
        """Return two of `size` examples of the first call, whose gradients are compared; none where none is kept.

        The one with the largest values, which may well be what others are scaled by, and another one.

        Args:
            size: B.
            roles_of: what the inputs of a module hold.
        """
        returned = [part.call for part in self.kept if part.call.has_returned]
        if not returned or size < 2:
            return []
        call = returned[0]
        roles = roles_of(call.module, *call.inputs)
        call.lift(size, roles)
        axes = next(iter(batch_axes(call.inputs, size, roles)), None)
        largest = 0 if not axes else Batch(call.inputs, axes, size).largest()
        return [largest, 0 if largest else 1]

    @property
    def count(self) -> int:
        """How many calls the batch had, kept or not."""
        return self._kept.count

    def whole(self, size: int) -> list[Pending]:
        """Return those that are examined at the end of a batch of `size` examples."""
        return [part for part in self._kept.whole if self._is_due(part, size)]

    def in_part(self, size: int) -> list[Pending]:
        """Return those of which a few examples are."""
        return [part for part in self._kept.in_part if self._is_due(part, size)]

    def are_any(self, size: int) -> bool:
        """Return whether there are any at the end of a batch of `size` examples."""
        return any(self._is_due(part, size) for part in self.kept)

    def examined(self, part: Pending, *, is_shown: bool) -> None:
        """A call was examined; `is_shown`: on more than one example with finite values and gradients."""
        self.looked_at(part)
        self._examined[part.signature] = is_shown
        if part.frozen:
            self._frozen[part.signature] = part.frozen

    def looked_at(self, part: Pending) -> None:
        """A few examples of a call were examined."""
        self.novelty.examined(part.call.module)

    @property
    def is_examined(self) -> bool:
        """Whether the model was examined on more than one example."""
        return any(self._examined.values())

    @property
    def is_never_examined(self) -> bool:
        """Whether the model ran in batches, and none of them was of more than one example."""
        return bool(self._examined) and not self.is_examined

    def forget(self) -> None:
        """The batch is over."""
        self._kept.clear()

    def _is_due(self, pending: Pending, size: int) -> bool:
        if not pending.call.has_returned or (not pending.call.is_training and not pending.call.reached):
            return False  # left by an exception; an evaluation between two batches
        if pending.is_look:
            return size > 1
        known = self._examined.get(pending.signature)
        return known is None or (size > 1 and not known)


def _holds(inputs: Any, size: int) -> bool:
    """Whether inputs hold as many examples as there are losses; capture says what is wrong where they do not."""
    shapes = [tensor.shape for _, tensor in tensors_at(inputs) if tensor.ndim]
    return any(shape[0] == size or (len(shape) > 2 and shape[1] == size) for shape in shapes)
