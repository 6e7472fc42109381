"""The call of a module that a capture mode belongs to: is it still running, and what tells of its end?

Forward hooks tell, but not always: torch skips them when a forward is left by KeyboardInterrupt or another
BaseException, in compiled code, and where they were removed meanwhile. So the call is known by its frame as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from hushgrad.torch_internals import MODULE_CALL_FILE

_frame_at = sys._getframe


class RunningCall:
    """A module's call, begun in the thread that makes this; only this thread may ask for it."""

    def __init__(self) -> None:
        self._frame = _frame_of_module_call()
        self._distances: dict[int, int] = {}

    def is_running(self, asker: int = 1) -> bool:
        """Return whether the call is on the stack of the calling thread.

        The same lines of code ask again and again, from as deep in the stack as before: a look at the distance that was
        found for them costs less than a walk.

        Args:
            asker: how many frames outside of this method's the code runs that tells where it is asked.
        """
        place = 0
        try:
            place = id(_frame_at(asker).f_code) + asker
            if _frame_at(self._distances.get(place, 0)) is self._frame:
                return True
        except ValueError:  # the stack is not that deep
            pass
        frame: FrameType | None = _frame_at(0)
        distance = 0
        while frame is not None:
            if frame is self._frame:
                self._distances[place] = distance
                return True
            frame, distance = frame.f_back, distance + 1
        return False

    def is_over(self, frame: FrameType | None) -> bool:
        """Return whether no hook of the call can run any more, asked from `frame`: its own frame runs none itself."""
        return (frame is not None and frame is self._frame) or not self.is_running()


def _frame_of_module_call() -> FrameType | None:
    """Return the outermost frame of torch's module call that runs this hook; it ends with the forward.

    Not the one that runs hooks: to hold that would keep alive the arguments that are to tell of its end. Compiled code
    may have put frames of its own in between.
    """
    frame: FrameType | None = _frame_at(1)
    while frame is not None and frame.f_code.co_filename != MODULE_CALL_FILE:
        frame = frame.f_back
    while frame is not None and frame.f_back is not None and frame.f_back.f_code.co_filename == MODULE_CALL_FILE:
        frame = frame.f_back
    return frame


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
