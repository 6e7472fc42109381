"""Tensors that a loop made of the lengths of an item alone (`arange(x.shape[1])`), and how they are made of others."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor

from hushgrad.guards.probing.loss_program import mapped, tensors_of
from hushgrad.guards.probing.numbers_taken import numbers_in

MOST_STEPS = 16
"""Longer chains of calls are not kept, nor calls with more numbers in a list."""


@dataclass(frozen=True, eq=False)
class LengthRecipe:
    """How a tensor was made: by which calls, of which lengths; `written` are numbers that stand in the code there."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    written: Set[float]
    steps: int = 1

    def made(self, lengths: Mapping[int, int]) -> Any:
        """Return what it makes of other lengths; anything may be raised where these do not fit."""

        of_lengths: dict[float, float] = {1 / one: 1 / other for one, other in lengths.items()}
        of_lengths |= {float(one): other for one, other in lengths.items()}

        def filled(value: Any) -> Any:
            if isinstance(value, LengthRecipe):
                return value.made(lengths)
            if isinstance(value, Size):
                return Size(lengths.get(number, number) for number in value)
            if isinstance(value, slice):
                return slice(filled(value.start), filled(value.stop), value.step)
            if type(value) not in (int, float):
                return value
            return value if value in self.written else of_lengths.get(value, value)

        return self.function(*mapped(self.args, filled), **mapped(self.kwargs, filled))


class LengthRecipes:
    """Remembers them for one item."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], LengthRecipe]] = {}

    def note(
        self, function: Callable[..., Any], given: tuple[Any, Any], result: Any, lengths: Set[int], written: Set[float]
    ) -> None:
        """A call into which nothing of the batch goes has made this of what was `given`, arguments by place and name.

        `lengths`: those of the item's tensors.
        """
        if not isinstance(result, Tensor) or not _is_short(given):
            return
        if any(result is tensor for tensor in tensors_of(given)):  # written to in place
            self._known.pop(id(result), None)
            return
        steps = 1 + sum(part.steps for tensor in tensors_of(given) if (part := self.of(tensor)) is not None)
        told = {*lengths, *(1 / length for length in lengths if length)}
        if steps == 1 and not told & (set(numbers_in(mapped(given, _plainly))) - written):
            return
        if steps <= MOST_STEPS:
            args, kwargs = mapped(given, self._step)
            self._known[id(result)] = weakref.ref(result), LengthRecipe(function, args, kwargs, written, steps)

    def of(self, tensor: Tensor) -> LengthRecipe | None:
        """Return how a tensor was made; None if not of lengths alone, or if it is not known."""
        known = self._known.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def _step(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return self.of(value) or value.detach()


def _is_short(given: tuple[Any, Any]) -> bool:
    """Whether arguments are tensors and a few numbers, and no generator, which another run would draw from."""
    for part in (*given[0], *given[1].values()):
        few = part if isinstance(part, (list, tuple)) else (part,)
        if len(few) > MOST_STEPS or any(isinstance(one, (list, dict, torch.Generator)) for one in few):
            return False
        if any(isinstance(one, tuple) and len(one) > MOST_STEPS for one in few):
            return False
        if any(hasattr(one, "__array__") and not isinstance(one, Tensor) for one in few):
            return False
    return True


def _plainly(value: Any) -> Any:
    if isinstance(value, slice):
        return (value.start, value.stop)
    return None if isinstance(value, Tensor) else value
