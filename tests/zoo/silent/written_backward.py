"""What is written while gradients are recorded, or by a backward, of one batch, and read in a later one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from silent_programs import Kind, clean, leaky, linear, replaced
from torch import Tensor, nn

COUNT = 8
X = 0.5 * torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1))
DATA = replaced(torch.cat([X, X]), COUNT - 1, torch.full((4,), 1e3), earlier=True)
WAYS = ("per_example", "session")
CHANGE = ("losses that change between batches",)
"""Of attributes that a backward writes: no forward does, so that it may be the loop."""

Keep = Callable[[float], float]


def size_of(gradient: Tensor) -> float:
    return float(gradient.abs().max()) * 100


def function_with(keep: Keep) -> Any:
    """Return an autograd function that divides gradients by what its class kept of the last batch's."""

    class Scaled(torch.autograd.Function):
        kept = 1.0

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            kept, Scaled.kept = Scaled.kept, keep(size_of(gradient))
            return gradient / kept

    return Scaled


class Net(nn.Module):
    """A layer, something done to its gradient, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.kept: Any = 1.0

    def between(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Any:
        return self.b(self.between(self.a(x).relu()))


def of_function(keep: Keep) -> Callable[[], nn.Module]:
    class WithFunction(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scaled = function_with(keep)

        def between(self, h: Tensor) -> Tensor:
            return self.scaled.apply(h)  # type: ignore[no-any-return]

    return WithFunction


def of_hook(keep: Keep) -> Callable[[], nn.Module]:
    class WithHook(Net):
        def between(self, h: Tensor) -> Tensor:
            if h.requires_grad:
                h.register_hook(self.note)  # type: ignore[no-untyped-call]
            return h / self.kept  # type: ignore[no-any-return]

        def note(self, gradient: Tensor) -> None:
            self.kept = keep(size_of(gradient))

    return WithHook


def of_module_hook(keep: Keep) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model, kept = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), [1.0]

        def hook(module: nn.Module, given: Any, gradients: Any) -> Any:
            scale, kept[0] = kept[0], keep(size_of(gradients[0]))
            return tuple(None if gradient is None else gradient / scale for gradient in given)

        model[1].register_full_backward_hook(hook)
        return model

    return make


def where_recorded(keep: Keep) -> Callable[[], nn.Module]:
    class WhereRecorded(Net):
        def between(self, h: Tensor) -> Tensor:
            scaled = h / self.kept
            if torch.is_grad_enabled():
                self.kept = keep(1 + float(h.detach().max()))
            return scaled  # type: ignore[no-any-return]

    return WhereRecorded


class Mapped(Net):
    """Keeps each example's own gradient, which the next backward writes over (a map of what mattered)."""

    def between(self, h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(self.note)  # type: ignore[no-untyped-call]
        return h

    def note(self, gradient: Tensor) -> None:
        self.kept = gradient.detach()


class Counting(Net):
    """Counts its backwards."""

    def between(self, h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(self.note)  # type: ignore[no-untyped-call]
        return h

    def note(self, gradient: Tensor) -> None:
        self.kept = self.kept + 1


KINDS: dict[str, Callable[[Keep], Callable[[], nn.Module]]] = {
    "a custom function's backward": of_function,
    "a hook on an activation": of_hook,
    "a module's backward hook": of_module_hook,
    "a forward where gradients are recorded": where_recorded,
}

KIND = Kind(
    "state of a backward",
    "all that a forward with gradients, and its backward, can write: by value, of two examples alone",
    "first batch, secret random steps",
    "what hooks of the loop's write: `losses that change between batches`",
    (
        *(leaky(f"{name}, of the batch", DATA, make=make(lambda v: v), batches=2, ways=WAYS, by_hand=False)
          for name, make in KINDS.items()),
        leaky("a custom function's backward, its root", DATA, make=of_function(math.sqrt), batches=2, ways=WAYS,
              by_hand=False),
        leaky("a hook on an activation, its logarithm", DATA, make=of_hook(math.log1p), batches=2, ways=WAYS,
              by_hand=False),
        *(clean(f"{name}, of a constant", DATA, make=make(lambda v: 1.0), batches=2, ways=WAYS)
          for name, make in KINDS.items()),
        clean("each example's own gradient is kept", DATA, make=Mapped, batches=2, ways=WAYS, told=CHANGE),
        clean("backwards are counted", DATA, make=Counting, batches=2, ways=WAYS, told=CHANGE),
        clean("nothing is kept", DATA, make=linear(), batches=2, ways=WAYS),
    ),
)  # fmt: skip
