"""Operators that are made of others: they run opened, so that each part is captured by its own rule.

These rules run with the mode on. A composite returns NotImplemented for calls of a form that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hushgrad.capture.axes import products as products
from hushgrad.capture.axes.rules import before_last, elementwise
from hushgrad.capture.operators import recurrent
from hushgrad.capture.operators.operator import Composite, ForwardContext
from hushgrad.capture.operators.registration import opens
from hushgrad.torch_internals import VARIABLE_FUNCTIONS, opened

_multi_head = opened(F.multi_head_attention_forward)


@opens(F.multi_head_attention_forward, axis=products.multi_head)
def multi_head(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `multi_head_attention_forward` as torch writes it, its parts captured one by one."""
    return _multi_head(*args, **kwargs)


@opens(torch.prelu, Tensor.prelu, axis=elementwise)
def prelu(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `F.prelu(input, weight)`: the slope meets what is not above 0."""
    x, weight = _prelu_arguments(*args, **kwargs)
    if not context.is_data(x) or context.leaf(weight) is None:
        return NotImplemented
    above = x > 0
    slope = weight.reshape([-1, *[1] * (x.ndim - 2)]) if weight.numel() > 1 and x.ndim > 2 else weight
    negative = x.masked_fill(above, 0) * slope
    return x.masked_fill(~above, 0) + negative


def _prelu_arguments(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return input, weight


@opens(F.embedding_bag, axis=products.embedding_bag)
def embedding_bag(
    context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Capture `F.embedding_bag` as a lookup of each bag's rows, then their sum, mean or largest values."""
    arguments = _Bags(*args, **kwargs)
    ids, weight = arguments.ids, arguments.weight
    if context.leaf(weight) is None or not context.is_data(ids) or context.leaf(arguments.sample_weights) is not None:
        return NotImplemented
    counted = None
    scales = arguments.sample_weights
    if arguments.offsets is not None:
        ids, scales, counted = _padded(context, arguments)
    rows = F.embedding(ids, weight, None, arguments.max_norm, 2.0, arguments.by_frequency, arguments.sparse)
    if arguments.padding_idx is not None:
        real = ids != arguments.padding_idx % weight.shape[0]
        counted = real if counted is None else counted & real
    if scales is not None:
        rows = rows * scales.unsqueeze(-1)
    if counted is None:
        if arguments.mode == "max":
            return rows.max(1)[0]
        return rows.sum(1) if arguments.mode == "sum" else rows.mean(1)
    left_out = ~counted.unsqueeze(-1)
    if arguments.mode == "max":
        largest = rows.masked_fill(left_out, -torch.inf).max(1)[0]
        return largest.masked_fill(~counted.any(1, keepdim=True), 0)
    total = rows.masked_fill(left_out, 0).sum(1)
    return total if arguments.mode == "sum" else total / counted.sum(1, keepdim=True).clamp(min=1)


class _Bags:
    """The arguments of `F.embedding_bag`."""

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        offsets: Tensor | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        per_sample_weights: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> None:
        self.ids, self.weight = (weight, input) if weight.dtype in (torch.int32, torch.int64) else (input, weight)
        self.given_offsets = offsets
        self.offsets = offsets[:-1] if offsets is not None and include_last_offset else offsets
        self.max_norm, self.by_frequency, self.sparse = max_norm, scale_grad_by_freq, sparse
        self.mode, self.sample_weights, self.padding_idx = mode, per_sample_weights, padding_idx


def _padded(context: ForwardContext, bags: _Bags) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the ids and their weights as `[bags, longest]`, and which of them are there.

    The bags are told apart by the offsets. All three are the model's own inputs, or the batch is lost.
    """
    offsets, ids = bags.offsets, bags.ids
    assert offsets is not None
    flat = [value for value in (bags.given_offsets, ids, bags.sample_weights) if context.is_data(value)]
    whole = bool(context.batch_size) and offsets.shape[0] % (context.batch_size or 1) == 0
    known = 0 if whole and all(context.axes.is_input(value) for value in flat) else None
    ends = torch.cat([offsets[1:], offsets.new_tensor([ids.shape[0]])])
    within = torch.arange(max(int((ends - offsets).max()), 1), device=ids.device)
    positions = offsets.unsqueeze(1) + within
    counted = positions < ends.unsqueeze(1)
    positions = positions.where(counted, 0) if ids.shape[0] else positions
    padded = ids[positions]
    scales = None
    if bags.sample_weights is not None:  # 0, and not another example's weight, which is infinite maybe: 0 × Inf is NaN
        scales = bags.sample_weights[positions].masked_fill(~counted, 0)
    for value in (padded, scales, counted):
        if value is not None:
            context.axes.set(value, known)
    return padded, scales, counted


def _cell_rule(kind: str) -> Composite:
    def cell(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs or len(args) not in (4, 6):
            return NotImplemented
        x, state, w_ih, w_hh, *biases = args
        h, c = state if isinstance(state, (tuple, list)) else (state, state)
        b_ih, b_hh = biases or (None, None)
        step = recurrent.CELLS[kind].step(F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh), h, c)
        return (step.h, step.c) if kind == "lstm" else step.h

    return cell


for _kind in recurrent.CELLS:
    opens(getattr(VARIABLE_FUNCTIONS, f"{_kind}_cell"), axis=before_last(1))(_cell_rule(_kind))
