"""The backward of a loop's own loss where gradients pass through 16 bits: multiplied before anything is rounded.

A mean divides each example's gradient by the number of rows, which follows the draw. Rounded to 16 bits after that, one
example more would change the rounding of all others, and small gradients would vanish. `engine.per_example` and
`session.backward` divide nothing. A loop's own `loss.backward()` does, so what comes into its loss from above is
multiplied by the number of rows (and by the loss scale) while it is still a number of at least 32 bits. So it is where
hooks or custom functions change gradients, maybe by their size: a clamp, a threshold.

A mode at the bottom of torch's stack, from the model's forward to the step, sees the backward begin. It is there only
where a forward was in 16 bits, or has such hooks.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hushgrad.capture.axes.batch_axes import NARROW
from hushgrad.guards.probing.loss_cuts import Cut
from hushgrad.guards.probing.trees import tensors_at
from hushgrad.low_mode import LowMode
from hushgrad.torch_internals import EagerCode

MEANS = {
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "cosine_embedding_loss", "gaussian_nll_loss",
    "hinge_embedding_loss", "huber_loss", "kl_div", "l1_loss", "margin_ranking_loss", "mse_loss", "multi_margin_loss",
    "multilabel_margin_loss", "multilabel_soft_margin_loss", "poisson_nll_loss", "smooth_l1_loss", "soft_margin_loss",
    "triplet_margin_loss",
}  # fmt: skip
"""Criteria whose mean is the mean of what they give without a reduction.

Some divide by rounding twice, so that a value half between two of 16 bits, which differences of such values often are,
would be rounded as the number of rows has it: they are run without a reduction, and averaged.
"""

REDUCTIONS = {"mean", "sum", "cross_entropy", "nll_loss"}
"""What makes one number of 16 bits of a batch's: that is done in 32 bits, and the number rounded."""

ARITHMETIC = {"add", "div", "double", "float", "mul", "neg", "__rsub__", "sub", "to", "true_divide"}
"""What is done to such a number is done to the one that it was rounded from."""


class Watched(Protocol):
    """A physical batch."""

    @property
    def follows_sizes(self) -> bool:
        """Whether the forwards so far do to gradients what may follow how large these are: 16 bits, hooks."""

    @property
    def is_watched(self) -> bool:
        """Whether its backward is to be seen."""

    def cuts(self, loss: Tensor) -> Sequence[Cut]:
        """Return where the gradient of a loss may be multiplied; empty where that cannot be told."""

    def multiplied(self, factor: float) -> None:
        """Told from inside a backward that its gradients were multiplied, and by what."""


class OwnBackward(LowMode):
    """Multiplies the gradients of the loop's own losses of one item, in the thread that took it.

    Guarantee: where `cuts` finds a place, what a loop's own mean hands to each example's values does not follow the
    number of rows, but for the last bit of float32.

    Args:
        batch: the physical batch in work; not held.
        factor: what gradients are multiplied by.
        is_mean: whether the loop's losses are means.
    """

    def __init__(self, batch: Watched, factor: float, *, is_mean: bool) -> None:
        super().__init__()
        self._batch, self._factor, self._is_mean = weakref.ref(batch), factor, is_mean
        self._is_on = False
        self._wide: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}  # what numbers of 16 bits were rounded from
        self._inputs: list[Any] = []  # of forwards, until one is in 16 bits
        self._has_others = False  # whether gradients go through the model to something else

    # What the probe tells --------------------------------------------------------------------------------------------

    def entering(self, inputs: Any) -> None:
        """A forward that may be trained on begins with these inputs."""
        self._take_out()
        self._inputs.append(inputs)

    def returned(self) -> None:
        """It has returned."""
        batch = self._batch()
        if self.is_over or batch is None or not batch.is_watched or not self.is_in_its_thread:
            return
        self._take_out()
        self._has_others = self._has_others or any(tensor.requires_grad for _, tensor in tensors_at(self._inputs))
        self._inputs.clear()
        for mode in OwnBackward.left_here():
            mode.end()
        self._is_on = True
        EagerCode.want(self)
        self.lay_down()

    def end(self) -> None:
        """The item is done with."""
        self._take_out()
        self.end_runs()
        self._inputs.clear()
        self._wide.clear()

    def _take_out(self) -> None:
        if self._is_on:
            self._is_on = False
            EagerCode.release(self)
            self.take_up()

    # The mode --------------------------------------------------------------------------------------------------------

    def run(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call; another way where it is a reduction in 16 bits, or a backward."""
        return _uncompiled()(self, func, args, kwargs) if self._is_on else func(*args, **kwargs)

    def _seen(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is Tensor.backward:
            return self._backward(args, kwargs)
        name = getattr(func, "__name__", "")
        batch = self._batch()
        if not self._is_mean or not torch.is_grad_enabled() or batch is None or not batch.follows_sizes:
            return func(*args, **kwargs)
        if name in MEANS and kwargs.get("reduction") == "mean" and not _is_legacy(kwargs):
            values = func(*args, **{**kwargs, "reduction": "none"})
            return self._narrowed(values.float().mean(), values.dtype) if values.dtype in NARROW else values.mean()
        is_arithmetic = name in ARITHMETIC and any(self._is_rounded(value) for value in args)
        result = func(*args, **kwargs)
        is_reduction = name in REDUCTIONS and isinstance(result, Tensor) and result.dtype in NARROW
        if not (is_arithmetic or is_reduction) or not _is_number(result) or "out" in kwargs:
            return result
        wide = func(*map(self._widened, args), **{key: self._widened(value) for key, value in kwargs.items()})
        return self._narrowed(wide, result.dtype)

    def _is_rounded(self, value: Any) -> bool:
        return isinstance(value, Tensor) and id(value) in self._wide and self._wide[id(value)][0]() is value

    def _widened(self, value: Any) -> Any:
        if self._is_rounded(value):
            return self._wide[id(value)][1]
        return value.float() if isinstance(value, Tensor) and value.dtype in NARROW else value

    def _narrowed(self, wide: Tensor, dtype: torch.dtype) -> Tensor:
        narrow = wide.to(dtype)
        if narrow is not wide:
            self._wide[id(narrow)] = weakref.ref(narrow), wide
        return narrow

    def _backward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        batch = self._batch()
        handles: list[Any] = []
        try:
            if batch is not None and batch.follows_sizes and not self._has_others and kwargs.get("inputs") is None:
                for cut in batch.cuts(args[0]):
                    handles.append(cut.node.register_prehook(self._multiplied(batch, cut)))
                    handles += [mean.register_hook(_exact_mean) for mean in cut.means]
            return Tensor.backward(*args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            for handle in handles:
                handle.remove()

    def _multiplied(self, batch: Watched, cut: Cut) -> Callable[[tuple[Tensor | None, ...]], tuple[Tensor | None, ...]]:
        def multiply(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            batch.multiplied(self._factor)
            return tuple(
                part if part is None or place not in cut.places else part * self._factor
                for place, part in enumerate(gradients)
            )

        return multiply


@functools.cache
def _disabled() -> Callable[..., Any]:
    return torch.compiler.disable(OwnBackward._seen)  # type: ignore[no-untyped-call,no-any-return]


def _uncompiled() -> Callable[..., Any]:
    """Return what a call is run by: no code of the loop's, where a loop compiles any."""
    return _disabled() if "torch._dynamo" in sys.modules else OwnBackward._seen


def _exact_mean(given: tuple[Tensor | None, ...], gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Divide what a mean's values are given anew: on some devices it is multiplied by the inverse, which is rounded."""
    values, total = given[0], gradients[0]
    if values is None or total is None or total.ndim:
        return given
    exact = (total.double() / values.numel()).to(values.dtype)
    return (exact.expand(values.shape), *given[1:])


def _is_legacy(kwargs: dict[str, Any]) -> bool:
    """Whether a criterion's reduction is named in torch's former way."""
    return kwargs.get("size_average") is not None or kwargs.get("reduce") is not None


def _is_number(result: Any) -> bool:
    """Whether a call gave one number that gradients come back through."""
    return isinstance(result, Tensor) and result.ndim == 0 and result.requires_grad
