"""Does the gradient of a private loss come to a leaf outside of the model? It comes plain: neither clipped nor noised.

A head behind the model, a learned temperature, a prompt in front of it: an ordinary optimizer that steps it has it
follow the records without protection, and later losses follow it. Leaves that are made anew for each item (an
adversarial step on the inputs) carry nothing from one to the next.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hushgrad.errors import UncoveredParameterUseError
from hushgrad.guards.probing.own_memory import OwnMemory, is_plain
from hushgrad.torch_internals import unseen


class OutsideLeaves:
    """Watches the leaves that the programs of one session use and that are not the model's.

    Args:
        own: the model's own tensors.
        is_private: whether the backward that runs accumulates gradients of the model.

    Attributes:
        were_reached: whether the last item that was looked at had one.
    """

    def __init__(self, own: OwnMemory, is_private: Callable[[], bool]) -> None:
        self._own, self._is_private = own, is_private
        self._earlier: dict[int, weakref.ref[Tensor]] = {}
        self._now: dict[int, weakref.ref[Tensor]] = {}
        self._hooks: list[Any] = []
        self._reached: list[tuple[tuple[int, ...], str]] = []
        self.were_reached = False

    def meet(self, leaf: Tensor, size: int, place: str) -> None:
        """A program of `size` examples uses this leaf, at a line of the loop, so that its gradient may be formed."""
        if not is_plain(leaf) or self._own.holds(leaf) or _holds(self._now, leaf):
            return
        self._now[id(leaf)] = weakref.ref(leaf)
        is_kept = isinstance(leaf, nn.Parameter) and size not in leaf.shape  # else it may be of this item alone
        if is_kept or _holds(self._earlier, leaf):
            watching, shape = weakref.ref(self), tuple(leaf.shape)  # the leaf may live longer than its item

            def reached(_: Tensor) -> None:
                if (leaves := watching()) is not None:
                    leaves._note(shape, place)

            with unseen():
                hook = leaf.register_post_accumulate_grad_hook(reached)  # type: ignore[no-untyped-call]
            self._hooks.append(hook)

    def _note(self, shape: tuple[int, ...], place: str) -> None:
        if self._is_private():
            self._reached.append((shape, place))

    def require_none(self) -> None:
        """Refuse an item whose losses gave a gradient to such a leaf.

        Raises:
            UncoveredParameterUseError: naming its shape, and the line that uses it.
        """
        if not self._reached:
            self.were_reached = False
            return
        self.were_reached = True
        shape, place = self._reached[0]
        raise UncoveredParameterUseError(
            f"a tensor of shape {list(shape)} that is no part of the private model gets a plain gradient from its "
            f"losses, neither clipped nor noised: an optimizer that steps it follows the records without protection",
            where=place,
            cure="Put it into the model that make_private gets, freeze it (requires_grad_(False)), or detach it",
        )

    def end_item(self) -> None:
        """The item is done."""
        for hook in self._hooks:
            hook.remove()
        alive = {key: known for key, known in self._earlier.items() if known() is not None}
        self._earlier = {**alive, **self._now}
        self._now, self._hooks, self._reached = {}, [], []


def _holds(refs: dict[int, weakref.ref[Tensor]], tensor: Tensor) -> bool:
    found = refs.get(id(tensor))
    return found is not None and found() is tensor
