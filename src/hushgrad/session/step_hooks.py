"""One step of the user's optimizer, seen from outside: what comes before its update, and what after.

Uses the optimizer's official hooks only: no subclass, no patched method.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.optim import Optimizer

from hushgrad.errors import UnsupportedOptimizerError
from hushgrad.joined_optimizer import hooks_of_parts
from hushgrad.printable import full_name
from hushgrad.thread_frames import frames_of_threads
from hushgrad.torch_internals import step_pre_hooks_of, witness_of_step


class StepHooks:
    """Calls `start` when a step begins, `prepare` once before its update, `finish` after it or `abandon` instead.

    `failed` is given what any of these raises, or the closure, and it is raised on.

    With `optimizer.step(closure)`, `prepare` comes after the closure, which may be evaluated once.

    Guarantee: one call of `optimizer.step()` prepares one update, also where the step calls its parent's.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        start: Callable[[], None],
        prepare: Callable[[], None],
        finish: Callable[[], None],
        abandon: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._failed = failed
        self._start, self._prepare, self._finish, self._abandon = start, prepare, finish, abandon
        self._step: _Step | None = None
        self._optimizer = optimizer
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def later(self) -> list[str]:
        """The names of the hooks that run after these, and see what `prepare` handed to the optimizer."""
        hooks = step_pre_hooks_of(self._optimizer)
        later = [hook for key, hook in hooks.items() if key > self._handles[0].id]
        return [full_name(hook) for hook in (*later, *hooks_of_parts(self._optimizer))]

    @property
    def is_running(self) -> bool:
        """Whether a step of the optimizer is at work, in any thread: not one that an exception has left."""
        step = self._step
        return step is not None and any(map(step.holds, frames_of_threads().values()))

    def remove(self) -> None:
        """Take the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frame = sys._getframe(1)  # that of torch's wrapper around `step`, which ends with the step
        if self._step is not None and self._step.calls(frame):
            return None  # an optimizer whose step calls its parent's: still the same step
        self._step = _Step(frame)
        self._run(self._start)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._run(self._prepare)
            return None
        evaluated = self._evaluated_once(closure)
        if len(args) > 1:
            return (args[0], evaluated, *args[2:]), kwargs
        return args, {**kwargs, "closure": evaluated}

    def _evaluated_once(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        calls = 0

        def evaluate() -> Any:
            nonlocal calls
            calls += 1
            if calls > 1:
                self._abandon()
                raise UnsupportedOptimizerError(
                    "the optimizer evaluated its closure more than once in one step, and each time would be a release",
                    cure="Use an optimizer that evaluates it once, such as SGD or Adam",
                )
            result = closure()
            self._prepare()
            return result

        return lambda: self._run(evaluate)

    def _run(self, part: Callable[[], Any]) -> Any:
        try:
            return part()
        except Exception as error:
            self._failed(error)
            raise

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._step is not None and self._step.address == id(sys._getframe(1)):
            self._step = None
            self._run(self._finish)


class _Step:
    """Torch's frame around one call of `step`, known and not held.

    A frame that is held keeps its locals and those of its callers: after a Ctrl-C, the user's batch until the next
    step. Another frame may come to have the address of one that is gone, but not what that one made for itself.
    """

    def __init__(self, frame: FrameType) -> None:
        self.address = id(frame)
        self._witness = witness_of_step(frame) or frame

    def calls(self, frame: FrameType) -> bool:
        """Return whether this frame is still running, and among the callers of `frame`."""
        return self.holds(frame.f_back)

    def holds(self, frame: FrameType | None) -> bool:
        """Return whether this frame is still running, and is `frame` or among its callers."""
        while frame is not None:
            if id(frame) == self.address:
                return self._witness is frame or self._witness is witness_of_step(frame)
            frame = frame.f_back
        return False
