"""Marks in `.grad` between a backward and the step, which show what a loop did there.

The sums of a backward live in the session, where `zero_grad()` cannot reach them. A loop that calls it after a backward
means to throw that backward away; torch has no hook that would tell. So after each backward the smallest parameters of
the model's parts hold a gradient that is a constant and carries nothing. `zero_grad()` takes it away, and a stray
gradient, or a `GradScaler`, changes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hushgrad.errors import HushgradError, ProtocolError, UnsupportedOptimizerError

MOST_MARKS = 16
"""How many parameters are marked; a step of small layers would notice many more."""

MOST_VALUES = 1 << 13
"""How many values all marks hold together, unless one parameter alone has more."""

LARGEST_FACTOR = 2.0**64
"""By how much a mark may have grown for it to be a scaled one; a gradient of 1 is 2**100 times as large."""

Problem = tuple[type[HushgradError], str]

CLEARED = (
    "gradients were cleared between a backward and optimizer.step() (zero_grad(), or .grad set to None or 0). An "
    "ordinary step would leave that backward out; a private one may not, since which backwards are dropped could "
    "depend on the data. If the backward was not for this model's update (a generator's loss, an adversarial example), "
    "run it inside `with engine.session.paused():`, or call torch.autograd.grad(loss, inputs). If it was, call "
    "zero_grad() before it or after optimizer.step(). Now call session.discard() and take the next batch"
)

SCALED = (
    "gradients were multiplied between a backward and optimizer.step(), by a GradScaler or by hand. The sums that are "
    "clipped and noised are elsewhere and stay as they are. Call loss.backward() and optimizer.step() without a scaler "
    "(bfloat16 needs none), and scale the learning rate. Now call session.discard() and take the next batch"
)


class GradientMarks:
    """The marks of one model: put after each backward, looked at and taken away by the step.

    Guarantee: what a backward gave is neither dropped nor kept in silence when `zero_grad()` clears it.
    """

    def __init__(self, model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> None:
        self._parameters = _smallest_of_the_parts(model, trainable)
        self._marks: dict[str, Tensor] = {}
        self._memory: list[Tensor] = []  # what marks lie in
        self._put: dict[str, int] = {}  # the version of each mark that was put
        self._problem: Problem | None = None

    def put(self) -> None:
        """Mark the model: a backward has ended. What was done to the marks of an earlier one is kept in mind."""
        if self._put:
            self._problem = self._problem or self._found()
        if any(_kind(self._marks.get(name)) != _kind(parameter) for name, parameter in self._parameters.items()):
            self._make()
        for name, parameter in self._parameters.items():
            if parameter.grad is None and parameter.requires_grad:
                parameter.grad = self._marks[name]
                self._put[name] = self._marks[name]._version

    def require_untouched(self) -> None:
        """Refuse to go on where marks were cleared or scaled.

        Raises:
            ProtocolError: `zero_grad()` was called after a backward.
            UnsupportedOptimizerError: gradients were scaled.
        """
        self._problem = self._problem or self._found()
        if self._problem is not None:
            kind, message = self._problem
            raise kind(message)

    def take_away(self) -> None:
        """Leave no mark behind, but where something was added to one: that is a stray gradient, and stays."""
        is_intact = self._is_intact()
        for name in self._put:
            parameter, mark = self._parameters[name], self._marks[name]
            if parameter.grad is mark and (is_intact or shows_nothing(parameter)):
                parameter.grad = None
        if not is_intact:
            self._marks = {}
        self._put, self._problem = {}, None

    def _make(self) -> None:
        self._marks, self._memory = {}, []
        kinds = dict.fromkeys((parameter.device, parameter.dtype) for parameter in self._parameters.values())
        for device, dtype in kinds:
            chosen = {n: p for n, p in self._parameters.items() if (p.device, p.dtype) == (device, dtype)}
            size = sum(parameter.numel() for parameter in chosen.values())
            memory = torch.full((size,), mark_value(dtype), dtype=dtype, device=device)
            start = 0
            for name, parameter in chosen.items():
                # No view, in the eyes of autograd: views forbid some of what zero_grad() does.
                mark = torch.empty(0, dtype=dtype, device=device)
                self._marks[name] = mark.set_(memory.untyped_storage(), start, parameter.shape)  # type: ignore[call-overload]
                start += parameter.numel()
            self._memory.append(memory[:MOST_VALUES])

    def _found(self) -> Problem | None:
        """Return what is wrong with the marks that were put, if anything is."""
        if self._is_intact():
            return None
        factors = []
        for name in self._put:
            grad = self._parameters[name].grad
            if grad is None or not bool(grad.any()):
                return ProtocolError, CLEARED
            factors.append((grad / mark_value(grad.dtype)).double().flatten())
        together = torch.cat(factors)
        # clip_grad_norm_ writes the same values again, and a stray gradient is larger by far: it is refused as one.
        is_scaled = (together == together[0]).all() & (together[0] != 1) & (together[0].abs() < LARGEST_FACTOR)
        return (UnsupportedOptimizerError, SCALED) if bool(is_scaled) else None

    def _is_intact(self) -> bool:
        """Whether nobody has touched a mark; a write through `.data` shows in its values alone."""
        for name, version in self._put.items():
            mark = self._marks[name]
            if self._parameters[name].grad is not mark or mark._version != version:
                return False
        return all(bool((memory == mark_value(memory.dtype)).all()) for memory in self._memory)


def _kind(tensor: Tensor | None) -> tuple[object, ...] | None:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


def mark_value(dtype: torch.dtype) -> float:
    """Return what marks of a dtype hold: not 0, and so small that a norm of gradients, which a loop may log, is 0."""
    return {torch.float16: 2.0**-13, torch.float64: 2.0**-600}.get(dtype, 2.0**-100)


def shows_nothing(parameter: Tensor) -> bool:
    """Return whether a parameter's `.grad` tells nothing of the data: None, or a mark."""
    grad = parameter.grad
    return grad is None or bool((grad == mark_value(grad.dtype)).all())


def _smallest_of_the_parts(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return the smallest trainable parameter, and that of each part of the model that has none of those before it.

    Parts are taken from the outside in, so that clearing the gradients of one of the larger parts alone shows, too.
    """
    names = {id(parameter): name for name, parameter in trainable.items()}
    chosen: dict[str, nn.Parameter] = {}
    values, waiting = 0, deque([model])
    while waiting and len(chosen) < MOST_MARKS:
        part = waiting.popleft()
        waiting.extend(part.children())
        inside = {names[id(p)]: p for p in part.parameters() if id(p) in names}
        if not inside or inside.keys() & chosen.keys():
            continue
        name = min(inside, key=lambda name: inside[name].numel())
        if not chosen or values + inside[name].numel() <= MOST_VALUES:
            chosen[name] = inside[name]
            values += inside[name].numel()
    return chosen
