"""Function modes that stay in torch's stack while the loop's own code runs: below all others, whose order they keep."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Self

from torch.overrides import TorchFunctionMode

from hushgrad.torch_internals import EagerCode, function_modes, order_modes

MOST_OTHERS = 1
"""So many other loops may be in an item in one thread (two private models that train in turns)."""


class LowMode:
    """Lies at the bottom of the stack of the thread that made it; in another thread nothing is changed.

    A loop that is left in the middle of an item tells nobody, and its session is collected at some allocation: maybe
    between torch's look at its stack and what it takes from there. So what lies in the stack holds this weakly and
    nothing else, and stays where it is: it passes calls on until another one is laid down or taken up in its thread.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._in_stack = _InStack(self)

    @property
    def is_over(self) -> bool:
        """Whether it passes calls on until it is taken out."""
        return self._in_stack.is_over

    def end_runs(self) -> None:
        """Pass calls on from now on; code that was compiled may run compiled."""
        self._in_stack.is_over = True
        EagerCode.release(self)

    def run(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call."""
        raise NotImplementedError

    @classmethod
    def here(cls) -> list[Self]:
        """Return those of this class in this thread's stack that are not over, the lowest first."""
        owners = [mode.owner for mode in function_modes() if isinstance(mode, _InStack)]
        return [owner for owner in owners if isinstance(owner, cls) and not owner.is_over]

    @classmethod
    def left_here(cls) -> list[Self]:
        """Return those of loops that were left in an item in this thread, as far as can be told: all but the newest."""
        return cls.here()[MOST_OTHERS:]

    @property
    def is_in_its_thread(self) -> bool:
        """Whether this is the thread that made it."""
        return threading.get_ident() == self._thread

    def lay_down(self) -> None:
        """Put it below all others, wherever it was."""
        if self.is_in_its_thread:
            order_modes([self._in_stack, *self._others()])

    def take_up(self) -> None:
        """Take it out, wherever it lies."""
        if self.is_in_its_thread:
            order_modes(self._others())

    def _others(self) -> list[TorchFunctionMode]:
        """Return what else is in the stack and not over."""
        modes = [mode for mode in function_modes() if mode is not self._in_stack]
        return [mode for mode in modes if not (isinstance(mode, _InStack) and mode.is_over)]


class _InStack(TorchFunctionMode):
    """What torch's stack holds of a low mode."""

    def __init__(self, owner: LowMode) -> None:
        super().__init__()
        self.is_over = False
        self._owner = weakref.ref(owner, self._gone)

    @property
    def owner(self) -> LowMode | None:
        """Whose it is; None once that was collected."""
        return self._owner()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one call; as torch does once it is over."""
        if self.is_over or (owner := self._owner()) is None:
            return func(*args, **(kwargs or {}))
        return owner.run(func, types, args, kwargs or {})

    def _gone(self, _: object) -> None:
        self.is_over = True
