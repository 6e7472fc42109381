"""Ordinary gradients of parameters, asked for in a way that every model can answer, with nothing left in `.grad`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import Node

from hushgrad.torch_internals import function_of
from hushgrad.torch_sharding import is_of_distributed_torch, laid_out_as


def ordinary_gradients(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the gradient of each parameter that a backward from the outputs reaches, by ordinary autograd.

    Of a parameter that is cut among tensor parallel processes it is that of the part of it that is here.

    Guarantee: `.grad` of the parameters, and of every leaf that the graph shows, is afterwards what it was.
    """
    if not may_run_backwards(outputs):
        found: Sequence[Tensor | None] = torch.autograd.grad(
            outputs, list(parameters.values()), cotangents, allow_unused=True
        )
    else:
        with kept_gradients(outputs, parameters.values()):
            torch.autograd.backward(outputs, cotangents)
            found = tuple(parameter.grad for parameter in parameters.values())
    return {
        name: laid_out_as(parameter, gradient)
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
        if gradient is not None
    }


def may_run_backwards(outputs: Iterable[Tensor]) -> bool:
    """Return whether a custom function is in the graph of the outputs: its backward may run another one.

    Reentrant checkpointing does. That adds to `.grad` of the parameters it finds, and refuses to run in a backward that
    was asked for the gradients of chosen tensors.
    """
    functions = (function_of(node) for node in _nodes(outputs))
    return any(function is not None and not is_of_distributed_torch(function) for function in functions)


@contextmanager
def kept_gradients(outputs: Iterable[Tensor], parameters: Iterable[Tensor]) -> Iterator[None]:
    """Take `.grad` away from the leaves of the outputs' graph and from the parameters, and give it back afterwards.

    The graph does not show which parameters a custom function uses.
    """
    shown = [node.variable for node in _nodes(outputs) if node.name() == "torch::autograd::AccumulateGrad"]  # type: ignore[attr-defined]
    kept = [(leaf, leaf.grad) for leaf in {id(leaf): leaf for leaf in (*shown, *parameters)}.values()]
    try:
        for leaf, _ in kept:
            leaf.grad = None
        yield
    finally:
        for leaf, gradient in kept:
            leaf.grad = gradient


def _nodes(outputs: Iterable[Tensor]) -> Iterator[Node]:
    """Yield each node of the graph of some outputs once."""
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen: set[Node] = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)
