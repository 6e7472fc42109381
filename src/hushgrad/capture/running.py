"""The call of a module that a capture mode belongs to: is it still running, and what tells of its end?

Forward hooks tell, but not always: torch skips them when a forward is left by KeyboardInterrupt or another
BaseException, in compiled code, and where they were removed meanwhile. So the call is known by its frame as well.

The frame is not held. A frame that is held keeps its locals and those of its callers, so after a Ctrl-C it would keep
the user's batch until the next forward. Its address is kept, and a weak reference to an object that dies with it: as
long as that lives no other frame can have the address, and after that the call is over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from hushgrad.torch_internals import MODULE_CALL_FILE, life_of_call

_frame_at = sys._getframe

DEPTHS = 4
"""How many distances are remembered for code that asks: modules of one class lie inside of each other at so many."""


class RunningCall:
    """A module's call, begun in the thread that makes this; only this thread may ask for it."""

    def __init__(self) -> None:
        frame, life = _frame_of_module_call()
        self._address = id(frame)
        self._life: Callable[[], Any] = (lambda: frame) if life is None else life  # compiled code has none of its own
        self._distances: dict[int, list[int]] = {}

    def is_running(self, asker: int = 1) -> bool:
        """Return whether the call is on the stack of the calling thread.

        The same lines of code ask again and again, from as deep in the stack as before or from one of a few depths: a
        look at the distances that were found for them costs less than a walk.

        Args:
            asker: how many frames outside of this method's the code runs that tells where it is asked.
        """
        if self._life() is None:
            return False
        address, known = self._address, None
        try:
            site = id(_frame_at(asker).f_code) + asker
            known = self._distances.get(site)
            if known is None:
                known = self._distances[site] = []
            for distance in known:
                if id(_frame_at(distance)) == address:
                    return True
        except ValueError:  # the stack is not that deep
            pass
        frame: FrameType | None = _frame_at(0)
        distance = 0
        while frame is not None:
            if id(frame) == address:
                if known is not None:
                    known.insert(0, distance)
                    del known[DEPTHS:]
                return True
            frame, distance = frame.f_back, distance + 1
        return False

    def is_over(self, frame: FrameType | None) -> bool:
        """Return whether no hook of the call can run any more, asked from `frame`: its own frame runs none itself."""
        return (frame is not None and id(frame) == self._address) or not self.is_running()


def _frame_of_module_call() -> tuple[FrameType | None, Callable[[], Any] | None]:
    """Return the outermost frame of torch's module call that runs this hook, and what dies with the call.

    The frame ends with the forward. It is not the one that runs hooks, whose arguments are to tell of its end. Compiled
    code may have put frames of its own in between.
    """
    frame: FrameType | None = _frame_at(1)
    while frame is not None and frame.f_code.co_filename != MODULE_CALL_FILE:
        frame = frame.f_back
    life = None if frame is None else life_of_call(frame)
    while frame is not None and frame.f_back is not None and frame.f_back.f_code.co_filename == MODULE_CALL_FILE:
        frame = frame.f_back
    return frame, life


class LivingArguments(dict[str, Any]):
    """The keyword arguments of a call, handed on to it as they are, which tell when the call's frame lets them go.

    Compiled code builds them anew without a call of `__init__`; such ones tell nobody.
    """

    _let_go: Callable[[FrameType | None], None] | None = None

    def __init__(self, kwargs: dict[str, Any], let_go: Callable[[FrameType | None], None]) -> None:
        super().__init__(kwargs)
        self._let_go = let_go

    def __del__(self) -> None:
        if self._let_go is not None:
            self._let_go(_frame_at(0).f_back)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # a copy is an ordinary dictionary
