"""Marks in `.grad` between a backward and the step, which show what a loop did there.

The sums of a backward live in the session, where `zero_grad()` cannot reach them. A loop that calls it after a backward
means to throw that backward away; torch has no hook that would tell. So after each backward the small parameters hold
a gradient that is a constant and carries nothing. `zero_grad()` takes it away, and a stray gradient, or a
`GradScaler`, changes it. All marks of a dtype but the first lie in the same memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hushgrad.errors import HushgradError, ProtocolError, UnsupportedOptimizerError
from hushgrad.torch_internals import version
from hushgrad.torch_sharding import like, local_part

MOST_MARKS = 128
"""How many parameters are marked; a step of hundreds of small layers would notice more."""

MOST_VALUES = 1 << 13
"""How many values a marked parameter has, unless all have more: then the smallest one is marked."""

LARGEST_FACTOR = 2.0**64
"""By how much a mark may have grown for it to be a scaled one; a gradient of 1 is 2**100 times as large."""

Problem = tuple[type[HushgradError], str, str]
"""The kind of an error, what is wrong, and the cure: not the error, which would hold the frames it was raised in."""

CLEARED: Problem = (
    ProtocolError,
    "gradients were cleared between a backward and optimizer.step() (zero_grad(), or .grad set to None or 0). An "
    "ordinary step would leave that backward out; a private one may not, since which backwards are dropped could "
    "depend on the data",
    "Run a backward that is not for this model's update (a generator's loss, an adversarial example) inside `with "
    "engine.session.paused():`, or call torch.autograd.grad(loss, inputs); for any other, call zero_grad() before it "
    "or after optimizer.step(). Now call session.discard() and take the next batch",
)

SCALED: Problem = (
    UnsupportedOptimizerError,
    "gradients were multiplied between a backward and optimizer.step(), by a GradScaler or by hand. The sums that are "
    "clipped and noised are elsewhere and stay as they are",
    "Call loss.backward() and optimizer.step() without a scaler (bfloat16 needs none; float16 takes "
    "PrivacyEngine(loss_scale=2.0**10)), and scale the learning rate. "
    "Now call session.discard() and take the next batch",
)


class GradientMarks:
    """The marks of one model: put after each backward, looked at and taken away by the step.

    Guarantee: what a backward gave is neither dropped nor kept in silence when `zero_grad()` clears it.
    """

    def __init__(self, model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> None:
        self._in_order = _small_ones_first(model, trainable)
        self._parameters: dict[str, nn.Parameter] = {}
        self._marks: dict[str, Tensor] = {}
        self._memory: list[Tensor] = []  # what marks lie in
        self._alone: list[str] = []  # whose mark has memory of its own
        self._put: dict[str, int] = {}  # the version of each mark that was put
        self._problem: Problem | None = None

    def put(self) -> None:
        """Mark the model: a backward has ended. What was done to the marks of an earlier one is kept in mind."""
        if self._put:
            self._problem = self._problem or self._found()
        if not self._fits():
            problem = self._problem
            self.take_away()
            self._make()
            self._problem = problem
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                parameter.grad = self._marks[name]
                self._put[name] = version(self._marks[name])

    def require_untouched(self) -> None:
        """Refuse to go on where marks were cleared or scaled.

        Raises:
            ProtocolError: `zero_grad()` was called after a backward.
            UnsupportedOptimizerError: gradients were scaled.
        """
        self._problem = self._problem or self._found()
        if self._problem is not None:
            kind, what, cure = self._problem
            raise kind(what, cure=cure)

    def take_away(self) -> None:
        """Leave no mark behind, but one that something was added to: that is a stray gradient, and stays."""
        is_intact = self._is_intact()
        for name, before in self._put.items():
            parameter, mark = self._parameters[name], self._marks[name]
            if parameter.grad is mark and (is_intact or version(mark) == before or shows_nothing(parameter)):
                parameter.grad = None
        if not is_intact:
            self._marks = {}  # new ones, next time
        self._put, self._problem = {}, None

    def _fits(self) -> bool:
        """Whether the marks are still those of parameters that are trained now."""
        return bool(self._marks) and all(
            parameter.requires_grad and mark.dtype is parameter.dtype and mark.device == parameter.device
            for parameter, mark in ((parameter, self._marks[name]) for name, parameter in self._parameters.items())
        )

    def _make(self) -> None:
        self._marks, self._memory, self._alone = {}, [], []
        trained = {name: parameter for name, parameter in self._in_order.items() if parameter.requires_grad}
        small = [name for name, parameter in trained.items() if parameter.numel() <= MOST_VALUES][:MOST_MARKS]
        self._parameters = {name: trained[name] for name in small or list(trained)[:1]}
        for device, dtype in dict.fromkeys((p.device, p.dtype) for p in self._parameters.values()):
            chosen = {n: p for n, p in self._parameters.items() if (p.device, p.dtype) == (device, dtype)}
            first, *others = [local_part(parameter).numel() for parameter in chosen.values()]
            memory = torch.full((first + max(others, default=0),), mark_value(dtype), dtype=dtype, device=device)
            for place, (name, parameter) in enumerate(chosen.items()):
                # No view, in the eyes of autograd: views forbid some of what zero_grad() does.
                mark = torch.empty(0, dtype=dtype, device=device)
                start, shape = first if place else 0, local_part(parameter).shape
                mark.set_(memory.untyped_storage(), start, shape)  # type: ignore[call-overload]
                self._marks[name] = like(parameter, mark)
            self._alone.append(next(iter(chosen)))
            self._memory.append(memory[:MOST_VALUES])

    def _found(self) -> Problem | None:
        """Return what is wrong with the marks that were put, if anything is."""
        if self._is_intact():
            return None
        grads = {name: self._parameters[name].grad for name in self._put}
        if any(grad is None for grad in grads.values()):
            return CLEARED
        # Memory that is shared was multiplied once for each mark in it.
        own = {name: local_part(grad) for name, grad in grads.items() if grad is not None}
        if any(_is_scaled(grad) for name, grad in own.items() if name in self._alone and grad.numel()):
            return SCALED
        if any(grad.numel() and not bool(grad.any()) for grad in own.values()):
            return CLEARED
        return None  # clip_grad_norm_ writes the same values again, and a stray gradient is left to be found as one

    def _is_intact(self) -> bool:
        """Whether nobody has touched a mark; a write through `.data` shows in its values alone."""
        for name, before in self._put.items():
            mark = self._marks[name]
            if self._parameters[name].grad is not mark or version(mark) != before:
                return False
        return all(bool((memory == mark_value(memory.dtype)).all()) for memory in self._memory)


def _is_scaled(grad: Tensor) -> bool:
    """Whether a mark was multiplied; a stray gradient is larger by far."""
    factors = (grad / mark_value(grad.dtype)).double().flatten()
    first = factors[0]
    return bool((factors == first).all() & (first != 1) & (first != 0) & (first.abs() < LARGEST_FACTOR))


def mark_value(dtype: torch.dtype) -> float:
    """Return what marks of a dtype hold: not 0, and so small that a norm of gradients, which a loop may log, is 0."""
    return {torch.float16: 2.0**-13, torch.float64: 2.0**-600}.get(dtype, 2.0**-100)


def shows_nothing(parameter: Tensor) -> bool:
    """Return whether a parameter's `.grad` tells nothing of the data: None, or a mark."""
    grad = parameter.grad
    return grad is None or bool((local_part(grad) == mark_value(grad.dtype)).all())


def _small_ones_first(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return the trainable parameters with values: the smallest of each part first, parts from the outside in.

    So clearing the gradients of one of the larger parts alone shows, too, where not all parameters can be marked.
    """
    names = {id(parameter): name for name, parameter in trainable.items() if parameter.numel()}
    first: dict[str, nn.Parameter] = {}
    waiting = deque([model])
    while waiting and len(first) < MOST_MARKS:
        part = waiting.popleft()
        waiting.extend(part.children())
        inside = {names[id(p)]: p for p in part.parameters() if id(p) in names}
        if inside and not inside.keys() & first.keys():
            name = min(inside, key=lambda name: inside[name].numel())
            first[name] = inside[name]
    rest = sorted((name for name in names.values() if name not in first), key=lambda name: trainable[name].numel())
    return first | {name: trainable[name] for name in rest}
