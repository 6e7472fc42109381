"""Where capture is on: inside the forward of a module that holds trainable parameters, while gradients are enabled."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.hooks import RemovableHandle

from hushgrad.capture.layout import BatchAxes, tensors_in
from hushgrad.capture.leaves import Leaf
from hushgrad.capture.mode import CaptureMode
from hushgrad.capture.operators.operator import Anchor, Forward
from hushgrad.capture.uses import UsePool
from hushgrad.errors import PrivacyUnitError

_MODULE_CALL = nn.Module._call_impl.__code__.co_filename


class CallObserver(Protocol):
    """Is told of every outermost forward that is captured."""

    def entering(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before the forward runs."""

    def left(self, output: Any) -> None:
        """Called with what it returned, None if it raised."""


class Scope:
    """Enters the capture mode when the outermost of a model's modules is called, and leaves it afterwards."""

    def __init__(self, model: nn.Module, pool: UsePool, observer: CallObserver | None = None) -> None:
        self._pool = pool
        self._observer = observer
        self._anchor = Anchor()
        self._sites = [
            (module._parameters, key, f"{prefix}.{key}" if prefix else key)
            for prefix, module in model.named_modules()
            for key, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad
        ]
        self._mode: CaptureMode | None = None
        self._owner: FrameType | None = None
        self._depth = 0
        self.paused = False
        self._handles: list[RemovableHandle] = []
        for module in model.modules():
            if any(parameter.requires_grad for parameter in module.parameters()):
                before, after = _Entering(self), _Leaving(self)
                self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                self._handles.append(module.register_forward_hook(after, always_call=True))

    def record_into(self, pool: UsePool) -> None:
        """Send the uses of coming forwards to `pool`; a graph of an earlier forward keeps the pool it began with."""
        self._pool = pool

    @contextmanager
    def recording_into(self, pool: UsePool) -> Iterator[None]:
        """Send the uses of the forwards inside to `pool`, and tell nobody of them."""
        kept = self._pool, self._observer
        self._pool, self._observer = pool, None
        try:
            yield
        finally:
            self._pool, self._observer = kept

    @property
    def anchor(self) -> Tensor:
        """The scalar that every captured operator hangs on: `backward(inputs=[anchor])` reaches them and no data."""
        return self._anchor.tensor

    def detach(self) -> None:
        """Take all hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.leave_if_stale()

    def leave_if_stale(self) -> bool:
        """Leave a mode whose forward is no longer running; return whether there was one.

        Forward hooks do not run when a forward is left by KeyboardInterrupt or another BaseException.
        """
        if self._mode is None or self._is_running():
            return False
        self._exit()
        return True

    def _is_running(self) -> bool:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame is self._owner:
                return True
            frame = frame.f_back
        return False

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called: begin to capture if it is the outermost one."""
        if self._mode is not None and self._is_running():
            self._depth += 1
            return
        self.leave_if_stale()
        if self.paused or not torch.is_grad_enabled():
            return
        if self._observer is not None:
            self._observer.entering(module, args, kwargs)
        axes = BatchAxes()
        batch_size = axes.seed((args, kwargs), self._pool.batch_size)
        held: list[Tensor] = []
        call = Forward(self._pool, self._anchor, axes, self._leaves(held), batch_size, held)
        self._mode = CaptureMode(call, self._is_running)
        self._owner = _frame_of_module_call()
        self._depth = 1
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, output: Any) -> None:
        """A module's call has ended: stop if it is the outermost one."""
        if self._mode is None:
            return
        self._depth -= 1
        if self._depth == 0:
            guard_outputs(self._mode.call, output)
            self._pool.is_narrow |= self._mode.call.axes.is_narrow
            self._exit()
            if self._observer is not None:
                self._observer.left(output)

    def _leaves(self, held: list[Tensor]) -> dict[int, Leaf]:
        """Resolve the parameters by name now: their tensors may have been swapped since the session began.

        They are held for the length of the forward, so that no other tensor can come to stand at their address.
        """
        leaves: dict[int, Leaf] = {}
        for parameters, key, name in self._sites:
            parameter = parameters[key]
            if parameter is not None and parameter.requires_grad and id(parameter) not in leaves:
                leaves[id(parameter)] = Leaf.of_parameter(name, parameter)
                held.append(parameter)
        return leaves

    def _exit(self) -> None:
        mode, self._mode, self._owner, self._depth = self._mode, None, None, 0
        assert mode is not None
        above = []
        while (top := _top_mode()) is not None:
            top.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            if top is mode:
                break
            above.append(top)
        for other in reversed(above):
            other.__enter__()  # type: ignore[no-untyped-call]
        mode.call.leaves.clear()
        mode.call.axes.clear()
        mode.call.held.clear()


def _frame_of_module_call() -> FrameType | None:
    """Return the frame of torch's module call that runs this hook; it ends with the forward.

    Compiled code may have put frames of its own in between.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _MODULE_CALL:
        frame = frame.f_back
    return frame


def guard_outputs(call: Forward, output: Any) -> None:
    """Let a backward through an output in which examples were mixed raise; as a value it may be looked at.

    Mixing before the last use of a parameter is seen at that use. Mixing after it (h - h.mean(0), a softmax over the
    batch) shows in the model's outputs only. A scalar is the loss itself, and is taken for a sum over examples. One
    example alone has no other to be mixed with.
    """
    if call.batch_size == 1:
        return
    for tensor in tensors_in(output):
        lost = tensor.ndim > 0 and tensor.requires_grad and call.axes.descends(tensor) and call.axes.get(tensor) is None
        if lost and not tensor.is_leaf:
            tensor.register_hook(  # type: ignore[no-untyped-call]
                _refusal(call.anchor, list(tensor.shape), call.axes.lost_by)
            )


def _refusal(anchor: Anchor, shape: list[int], lost_by: str | None) -> Callable[[Tensor], None]:
    def refuse(gradient: Tensor) -> None:
        if anchor.is_accumulating():
            raise PrivacyUnitError(
                f"the examples of the batch cannot be told apart in an output of the model, of shape {shape}, since "
                f"{lost_by or 'its forward began'}. Keep the batch on an axis of its own, and mix no examples"
            )

    return refuse


def _top_mode() -> TorchFunctionMode | None:
    stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return stack[-1] if stack else None


class _Hook:
    """A hook that copies and pickles to one that does nothing: a copy of the model is an ordinary model."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __reduce__(self) -> tuple[Any, ...]:
        # A method of the standard library that takes anything and returns None: a saved model loads without hushgrad.
        return getattr, (nullcontext(), "__exit__")


class _Entering(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._scope.enter(module, args, kwargs)


class _Leaving(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._scope.leave(output)
