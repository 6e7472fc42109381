"""Watches one forward and backward under capture: which module's operator contributed what to which parameter."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from hushgrad.capture.axes.batch_axes import tensors_in
from hushgrad.capture.uses import UsePool
from hushgrad.checks.doctor.cost import without_values
from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.torch_internals import function_of, unseen

CAPTURE = "hushgrad.capture"
GENERIC = "hushgrad.capture.operators.generic"


@dataclass(frozen=True, eq=False)
class Recorded:
    """One contribution to one parameter.

    Attributes:
        call: the number of the operator's call in the backward.
        module: the module in whose forward it ran; None if that is not known.
        operator: its name, followed by what it was used on in parentheses.
        parameter: the parameter's name.
        contribution: shapes only.
        held_bytes: what the real one holds.
        route: "", "slices" or "masks" (the generic fallback).
        output_values: the number of values of its output gradient.
        input_needed: whether its input's gradient was asked for.
    """

    call: int
    module: str | None
    operator: str
    parameter: str
    contribution: Contribution
    held_bytes: int
    route: str
    output_values: int
    input_needed: bool


class RecordingPool(UsePool):
    """A pool that also keeps the shapes of what it is given, and where it came from."""

    def __init__(self, batch_size: int | None, sparse: Collection[str] = ()) -> None:
        super().__init__(Plan(operand_bytes=0), sparse=sparse)  # so that forwards announce what a backward will keep
        self.batch_size = batch_size
        self.recorded: list[Recorded] = []
        self.backward = BackwardWatch()
        self._operator = ""

    def operands(self, tensor: Tensor, axis: Any, where: str) -> Tensor:
        """As `UsePool.operands`; takes note of the operator that asks."""
        self._operator = where
        return super().operands(tensor, axis, where)

    def add(self, name: str, contribution: Contribution) -> None:
        """As `UsePool.add`."""
        shapes, held = without_values(contribution)
        watch = self.backward
        self.recorded.append(
            Recorded(
                watch.call,
                watch.module,
                self._operator,
                name,
                shapes,
                held,
                watch.route(contribution.batch_size),
                watch.output_values,
                watch.input_needed,
            )
        )
        super().add(name, contribution)


class BackwardWatch(TorchFunctionMode):
    """Knows during a backward which captured operator is running, and how the generic fallback goes about it."""

    def __init__(self) -> None:
        super().__init__()
        self.call = 0
        self.module: str | None = None
        self.input_needed = True
        self.output_values = 0
        self._is_generic = False
        self._batched_vjps = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one call."""
        kwargs = kwargs or {}
        if func is torch.autograd.grad and kwargs.get("is_grads_batched"):
            self._batched_vjps += 1
        return func(*args, **kwargs)

    def begins(self, module: str, node: Node, output_values: int) -> None:
        """The backward of a captured operator begins."""
        self.output_values = output_values
        self.call += 1
        self.module = module
        self._is_generic = _home(node) == GENERIC
        self._batched_vjps = 0
        self.input_needed = sum(node.needs_input_grad) > 1  # type: ignore[attr-defined]  # the anchor always is

    def route(self, batch_size: int) -> str:
        """Return how the operator without a rule told the examples apart: walking its graph once for each, or not."""
        if not self._is_generic:
            return ""
        return "masks" if self._batched_vjps >= max(batch_size, 1) else "slices"


def _home(node: Node) -> str:
    """Return the module in which the autograd function of a node is defined; empty for those of torch."""
    cls = function_of(node)
    return cls.__module__ if cls is not None else ""


class ModuleAttribution:
    """Learns in whose forward each captured operator ran, from the graph of what every module returns.

    Inner modules return before outer ones, so what a module's outputs reach and no inner module's did is its own.
    """

    def __init__(self, model: nn.Module, watch: BackwardWatch) -> None:
        self._watch = watch
        self._seen: dict[Node, None] = {}
        self._handles: list[RemovableHandle] = [
            module.register_forward_hook(self._hook(name)) for name, module in model.named_modules()
        ]

    def remove(self) -> None:
        """Take the hooks off the model and forget the graph."""
        for handle in self._handles:
            handle.remove()
        self._seen.clear()

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            with unseen():
                self._walk(name, output)

        return hook

    def _walk(self, name: str, output: Any) -> None:
        waiting = [tensor.grad_fn for tensor in tensors_in(output)]
        while waiting:
            node = waiting.pop()
            if node is None or node in self._seen:
                continue
            self._seen[node] = None
            if _home(node).startswith(CAPTURE):
                node.register_prehook(self._prehook(name, node))
            waiting.extend(before for before, _ in node.next_functions)

    def _prehook(self, name: str, node: Node) -> Callable[..., None]:
        def begins(gradients: Any) -> None:
            values = sum(part.numel() for part in gradients if part is not None)
            self._watch.begins(name, node, values)

        return begins
