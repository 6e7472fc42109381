"""Which of a batch's calls of the model are kept to be run again: all of the first batch, as far as there is room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hushgrad.capture.public import PublicTensors
from hushgrad.guards.probing.calls import Call
from hushgrad.guards.probing.looks import Looks
from hushgrad.torch_internals import hook_counts, modules_of

Signature = tuple[tuple[nn.Module, ...], tuple[bool, ...], tuple[int, ...]]
"""What a change of the model shows in: its modules, their modes and the number of their hooks."""

KEPT_WHOLE = 4
"""How many calls of one module in one batch are examined whole; of the others a few examples each."""

KEPT_IN_PART = 32
"""How many others are kept, each as likely. In later batches it is `KEPT_LATER`."""

KEPT_LATER = 2


@dataclass(eq=False)
class Pending:
    """A call that is to be examined.

    Attributes:
        call: what was called.
        signature: that of the model then.
        frozen: parameters that were frozen for a while, whose gradients are not examined with this call.
        is_look: whether a few of its examples are run again, and not all.
    """

    call: Call
    signature: Signature
    frozen: list[nn.Parameter]
    is_look: bool = False


class KeptCalls:
    """The calls of the batch in work.

    Args:
        model: the root.
        parameters: what is trained.
        looks: decides which of the later ones are kept.
        public: what was declared, and is no part of any batch.
    """

    def __init__(
        self, model: nn.Module, parameters: list[nn.Parameter], looks: Looks, public: PublicTensors | None = None
    ) -> None:
        self._public = public
        self._model = model
        self._parameters = parameters
        self._looks = looks
        self.whole: list[Pending] = []
        self.in_part: list[Pending] = []
        self._others = 0
        self.count = 0
        """How many calls the batch had."""

    def clear(self) -> None:
        """The batch is over."""
        self.whole.clear()
        self.in_part.clear()
        self._others = self.count = 0

    def begun(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        signature: Signature,
        *,
        is_known: bool,
        is_new: bool,
    ) -> Pending | None:
        """A call begins; return what is kept of it.

        `is_known`: whether this signature was examined before; `is_new`: whether its inputs show what none have shown.
        """
        self.count += 1
        if not is_known and self._has_room(module, signature):
            found = self._kept(module, args, kwargs, signature, is_look=False)
            self.whole.append(found)
            return found
        if is_known and not (is_new or self._looks.wanted):
            return None
        self._others += 1
        place = self._looks.place(self._others, KEPT_LATER if is_known else KEPT_IN_PART)
        if place is None:
            return None
        found = self._kept(module, args, kwargs, signature, is_look=True)
        self.in_part[place : place + 1] = [found]
        return found

    def _kept(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], signature: Signature, *, is_look: bool
    ) -> Pending:
        frozen = [parameter for parameter in self._parameters if not parameter.requires_grad]
        call = Call.begun(self._model, module, args, kwargs, self._public)
        return Pending(call, signature, frozen, is_look)

    def _has_room(self, module: nn.Module, signature: Signature) -> bool:
        """Keep few calls of one module: the first ones of a batch, the last one in eval(), where most train nothing."""
        alike = [part for part in self.whole if part.call.module is module and part.signature == signature]
        if not self._model.training:
            for part in alike:
                if not part.call.reached:
                    self.whole.remove(part)
            return True
        return len(alike) < KEPT_WHOLE


def signature_of(model: nn.Module) -> Signature:
    """Return the signature of a model as it is now."""
    modules = modules_of(model)
    return tuple(modules), tuple([module.training for module in modules]), hook_counts(modules)
