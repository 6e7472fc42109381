"""Which submodule it was: the first one whose values of other examples changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hushgrad.guards.probing.rows import grown_axes, rows_agree
from hushgrad.guards.probing.trees import tensors_at

Digest = dict[tuple[Any, ...], tuple[torch.Size, Tensor]]


class ModuleTrace:
    """What went into and out of every submodule during one forward, reduced to numbers per row."""

    def __init__(self, model: nn.Module) -> None:
        self.events: list[tuple[str, str, Any]] = []
        self._handles = []
        for name, module in model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._entering(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._left(name)))

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.events.append(("in", name, _kept((args, kwargs))))

        return hook

    def _left(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.events.append(("out", name, _kept(output)))

        return hook


def _kept(value: Any) -> dict[Any, Tensor]:
    return {path: tensor.detach().clone() for path, tensor in tensors_at(value)}


def first_place(
    model: nn.Module,
    whole: Callable[[], Any],
    fewer: Callable[[], Any],
    other: Callable[[], Any],
    others: tuple[Sequence[int], Sequence[int]],
    size: tuple[int, int],
) -> str | None:
    """Return the name of the module in which the examples first met, None if no traced value shows it.

    Args:
        model: the root, for names.
        whole, fewer: run the batch, and the batch with one example fewer.
        other: runs the batch with one example altered (or fewer).
        others: the unaltered examples' numbers in `whole` and in `other`.
        size: the number of examples in `whole` and in `other`.
    """
    base, less, changed = (_traced(model, run) for run in (whole, fewer, other))
    running: list[str] = []
    for place, (kind, name, values) in enumerate(base):
        around = running[-1] if running else name
        if place >= len(changed) or changed[place][:2] != (kind, name):
            return around
        small = less[place][2] if place < len(less) and less[place][:2] == (kind, name) else {}
        if _differ(values, changed[place][2], grown_axes(values, small, size[0]), others, size):
            return name if kind == "out" else around
        if kind == "in":
            running.append(name)
        elif running:
            running.pop()
    return None


def _traced(model: nn.Module, run: Callable[[], Any]) -> list[tuple[str, str, Any]]:
    trace = ModuleTrace(model)
    try:
        run()
    finally:
        trace.remove()
    return trace.events


def _differ(
    one: dict[Any, Tensor],
    two: dict[Any, Tensor],
    axes: dict[Any, int],
    others: tuple[Sequence[int], Sequence[int]],
    size: tuple[int, int],
) -> bool:
    for (path,), axis in axes.items():
        a, b = one[path].movedim(axis, 0), two[path].movedim(axis, 0) if path in two else None
        if b is None or a.ndim != b.ndim:
            return True
        unit = a.shape[0] // size[0]
        rows_a = a.reshape(size[0], unit, *a.shape[1:])[list(others[0])]
        rows_b = b.reshape(size[1], b.shape[0] // size[1], *b.shape[1:])[list(others[1])]
        if rows_a.ndim != rows_b.ndim or not rows_agree(rows_a, rows_b):
            return True
    return False


def called(model: nn.Module, name: str | None) -> str:
    """Return how a message names a module: its dotted name and its class."""
    if name is None:
        return "the model"
    module = model.get_submodule(name)
    return f"{name} ({type(module).__name__})" if name else f"the forward of {type(module).__name__} itself"


def cure(model: nn.Module, name: str | None) -> str:
    """Return what to do about a module that mixes examples."""
    module = model.get_submodule(name) if name is not None else model
    if isinstance(
        module,
        (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.Transformer, nn.RNNBase),
    ):
        return "Is the batch on the axis it expects? Set batch_first=True, or give it the batch on its axis 1"
    if "norm" in type(module).__name__.lower():
        return "Normalise over the features of one example: nn.GroupNorm, nn.LayerNorm, or frozen statistics in eval()"
    return (
        "Compute each example's values from that example alone: take means, maxima, norms, softmax, sorting and "
        "decisions over its own dimensions, never over the batch's"
    )
