"""Function modes that stay in torch's stack while the loop's own code runs: below all others, whose order they keep."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode

from hushgrad.torch_internals import EagerCode, function_modes, order_modes


class LowMode(TorchFunctionMode):
    """Lies at the bottom of the stack of the thread that made it; in another thread it can only be given up.

    A loop that is left in the middle of an item tells nobody, and its session is collected at some allocation: maybe
    between torch's look at its stack and what it takes from there. So what runs then calls `give_up`, which leaves the
    stack as it is. A mode that was given up lets go of what it holds at the next call, and passes calls on until
    another one is laid down or taken up in its thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._is_given_up = False
        self.is_over = False
        """Whether it passes calls on until it is taken out."""

    def run(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Hold nothing of the loop any more: it was given up."""
        raise NotImplementedError

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one call; as torch does once it is over."""
        if not self.is_over:
            return self.run(func, types, args, kwargs or {})
        if self._is_given_up:
            self.let_go()
        return func(*args, **(kwargs or {}))

    @property
    def is_in_its_thread(self) -> bool:
        """Whether this is the thread that made it."""
        return threading.get_ident() == self._thread

    def lay_down(self) -> None:
        """Put it below all others, wherever it was."""
        if self.is_in_its_thread:
            order_modes([self, *self._others()])

    def take_up(self) -> None:
        """Take it out, wherever it lies."""
        if self.is_in_its_thread:
            order_modes(self._others())

    def give_up(self) -> None:
        """Nobody wants it any more; safe in a finalizer."""
        self.is_over = self._is_given_up = True
        EagerCode.release(self)

    def _others(self) -> list[TorchFunctionMode]:
        """Return what else is in the stack and not over."""
        modes = [mode for mode in function_modes() if mode is not self]
        return [mode for mode in modes if not (isinstance(mode, LowMode) and mode.is_over)]
