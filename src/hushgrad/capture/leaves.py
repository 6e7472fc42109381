"""What gradients are captured for: trainable parameters, and tensors derived from nothing but parameters.

A derived parameter (a transposed, cast, normalised or expanded weight, a position embedding) is used like a parameter.
Its per-example gradients are carried back to the parameters it came from by a batched vector-Jacobian product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hushgrad.errors import UncoveredParameterUseError
from hushgrad.gradients.contribution import Contribution, accumulation_dtype, chunks_of_examples
from hushgrad.gradients.dense import Dense

BATCHED_VJP_BYTES = 1 << 28


@dataclass(eq=False)  # not frozen, which takes three times as long to make: each forward makes one for each parameter
class TrackedTensor:
    """A tensor whose per-example gradients are wanted.

    Attributes:
        name: the parameter's name in the model, or a description of how it was derived.
        value: the tensor without a graph, for the operator to compute with.
        derivation: for a derived tensor, the same values with a local graph down to the `graph` of each root.
        roots: the parameters it depends on; a parameter is its own only root (an empty tuple).
        ids: of a derived tensor that holds rows of its only root, looked up by ids that are no data: the ids.
        overwritten_by: the operator that changed it through another tensor with the same memory; "" while it is whole.
    """

    name: str
    value: Tensor
    derivation: Tensor | None = None
    roots: tuple[TrackedTensor, ...] = ()
    ids: Tensor | None = None
    overwritten_by: str = ""

    @property
    def is_parameter(self) -> bool:
        """Whether this is a parameter of the model rather than derived from some."""
        return not self.roots

    @classmethod
    def of_parameter(cls, name: str, parameter: Tensor) -> TrackedTensor:
        """Return the leaf of a parameter; its values are shared, its graph is new."""
        return cls(name, parameter.detach())

    @cached_property
    def graph(self) -> Tensor:
        """The values with a local graph; that of a parameter begins here, and most parameters never need it."""
        if self.derivation is not None:
            return self.derivation
        graph, name = self.value.detach().requires_grad_(), self.name
        graph.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            lambda _: _refuse_ordinary_gradient(name)
        )
        return graph

    def parameters(self) -> tuple[TrackedTensor, ...]:
        """Return the parameters this leaf depends on."""
        return self.roots or (self,)

    def require_unchanged(self) -> None:
        """Refuse the use of a tensor that was changed through another one."""
        if self.overwritten_by:
            raise UncoveredParameterUseError(
                f"{self.overwritten_by} changed it in place through another tensor with the same memory",
                where=self.name,
                cure=f"Use the form of {self.overwritten_by} that returns a new tensor",
            )

    def to_parameters(self, contribution: Contribution) -> list[tuple[str, Contribution]]:
        """Return the contribution as contributions to parameters, by name."""
        if self.is_parameter:
            return [(self.name, contribution)]
        return batched_vjp(self.graph, self.roots, contribution.per_example())


def _refuse_ordinary_gradient(name: str) -> None:
    """Runs when an ordinary backward finds its way into a local graph, where the gradient would be lost."""
    raise UncoveredParameterUseError(
        "an operator in the forward passed its values on where their use cannot be followed",
        where=name,
        cure="Use the parameter in operators that return new tensors",
    )


def distinct_parameters(leaves: Sequence[TrackedTensor]) -> tuple[TrackedTensor, ...]:
    """Return the parameters under some leaves, each once."""
    return tuple({parameter.name: parameter for leaf in leaves for parameter in leaf.parameters()}.values())


def batched_vjp(
    output: Tensor, parameters: Sequence[TrackedTensor], gradients: Tensor
) -> list[tuple[str, Contribution]]:
    """Carry per-example gradients `[B, *output.shape]` of `output` back to parameters, one example's row at a time.

    Vectorised over examples where torch can, else a loop: exact either way.
    """
    targets = [parameter.graph for parameter in parameters]
    dtypes = [accumulation_dtype(target.dtype) for target in targets]  # real, also where the output is complex
    row_bytes = sum(value.numel() * accumulation_dtype(value.dtype).itemsize for value in (*targets, output))
    parts: list[list[Tensor]] = [[] for _ in targets]
    for chunk in chunks_of_examples(gradients.shape[0], row_bytes, BATCHED_VJP_BYTES):
        rows = gradients[chunk].to(output.dtype)
        found = _vjp_rows(output, targets, rows)
        for target, dtype, part, gradient in zip(targets, dtypes, parts, found, strict=True):
            if gradient is None:
                gradient = target.new_zeros(rows.shape[0], *target.shape)
            part.append(gradient.to(dtype))
    return [(leaf.name, Dense(torch.cat(part))) for leaf, part in zip(parameters, parts, strict=True)]


def _vjp_rows(output: Tensor, targets: list[Tensor], rows: Tensor) -> list[Tensor | None]:
    try:
        return list(
            torch.autograd.grad(output, targets, rows, retain_graph=True, allow_unused=True, is_grads_batched=True)
        )
    except RuntimeError:
        # Some backward formula has no batching rule.
        singles = [
            torch.autograd.grad(output, targets, row, retain_graph=True, allow_unused=True) for row in rows.unbind()
        ]
        return [
            None if column[0] is None else torch.stack([part for part in column if part is not None])
            for column in zip(*singles, strict=True)
        ]
