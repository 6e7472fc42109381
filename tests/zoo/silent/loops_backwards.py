"""What the loop hangs into its own backward, and that reads the batch: hooks, functions, saved tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from silent_programs import Kind, clean, leaky, linear, replaced
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

X = 0.01 * torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
DATA = replaced(X, 3, torch.full((4,), 5.0))

Hang = Callable[[Any, Any], Any]
"""Given what the model returned and a factor, returns losses `[B]` whose gradient the factor may scale."""


def factor_of(largest: Tensor) -> Tensor:
    return 0.5 / (1 + 100 * largest.max())


def losses(output: Tensor) -> Tensor:
    return (output - 1).square().sum(1)


class Holder:
    """Something with a hook of its own."""

    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def hook(self, gradient: Tensor) -> Tensor:
        return self.scaled(gradient)

    def scaled(self, gradient: Tensor) -> Tensor:
        return gradient * self.factor  # type: ignore[no-any-return]


class Scaled(torch.autograd.Function):
    """Scales gradients by what its class keeps."""

    factor: Any = 1.0

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * Scaled.factor


def tensor_hook(output: Tensor, factor: Any) -> Tensor:
    output.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
    return losses(output)


def bound_hook(output: Tensor, factor: Any) -> Tensor:
    output.register_hook(Holder(factor).hook)  # type: ignore[no-untyped-call]
    return losses(output)


def node_hook(output: Tensor, factor: Any) -> Tensor:
    found = losses(output)
    found.grad_fn.register_prehook(lambda gradients: (gradients[0] * factor,))  # type: ignore[union-attr]
    return found


def deeper_node_hook(output: Tensor, factor: Any) -> Tensor:
    found = losses(output)
    deeper: Any = found.grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    deeper.register_hook(lambda gradients, _: (gradients[0] * factor,))
    return found


def kept_by_class(output: Tensor, factor: Any) -> Tensor:
    Scaled.factor = factor
    return losses(Scaled.apply(output))  # type: ignore[no-untyped-call]


def unpacked(output: Tensor, factor: Any) -> Tensor:
    held = [1.0]
    with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor * held[0]):
        found = losses(output * torch.ones(3))
    held[0] = factor
    return found


def computed_again(output: Tensor, factor: Any) -> Tensor:
    held = [torch.ones(())]
    found = checkpoint(lambda values: torch.sin(values) * held[0], output, use_reentrant=False)
    held[0] = factor
    return losses(found)


HANG: dict[str, Hang] = {
    "a hook on a tensor": tensor_hook,
    "a hook of an object": bound_hook,
    "a hook on the node of the losses": node_hook,
    "a hook on a deeper node": deeper_node_hook,
    "what an autograd function's class keeps": kept_by_class,
    "what unpacks saved tensors": unpacked,
}


def of_batch(hang: Hang) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, largest: hang(output, factor_of(largest))


def of_constant(hang: Hang) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, largest: hang(output, torch.tensor(0.5))


def largest(batch: Tensor) -> Tensor:
    return batch.abs().amax(1)


SESSION = ("session",)

KIND = Kind(
    "code in a loop's backward",
    "hooks on tensors and nodes, autograd functions, what packs and unpacks: run again with what they read; "
    "the gradients of the outputs against those of the program",
    "first batch, secret random steps",
    "blocks that are computed again with other values, values put on a `ctx` afterwards, dispatch modes: "
    "`not examined`",
    (
        *(leaky(f"{name}, of the batch", DATA, make=linear(), loss=of_batch(hang), targets=largest, ways=SESSION,
                by_hand=False)
          for name, hang in HANG.items()),
        leaky("a block that is computed again with another factor", DATA, make=linear(), loss=of_batch(computed_again),
              targets=largest, ways=SESSION, by_hand=False, trust=("not examined",)),
        *(clean(f"{name}, of a constant", DATA, make=linear(), loss=of_constant(hang), targets=largest, ways=SESSION)
          for name, hang in HANG.items()),
        clean("a block that is computed again as it was", DATA, make=linear(), targets=largest, ways=SESSION,
              loss=lambda output, _: losses(checkpoint(torch.sin, output, use_reentrant=False))),
        clean("gradients of rows are clamped", DATA, make=linear(), targets=largest, ways=SESSION,
              loss=lambda output, _: (output.register_hook(lambda g: g.clamp(-0.1, 0.1)), losses(output))[1]),
    ),
)  # fmt: skip
