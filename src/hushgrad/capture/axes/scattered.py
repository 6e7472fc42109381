"""`masked_scatter`: values are handed out to the places of a mask, one behind the other, over all examples.

So vision-language models put the features of each image into the sentence that speaks of it. In what order places and
values are used is the rows' own, so example i gets its own values as long as every example has as many places as
values; where one has more or fewer, all behind it get another's. With the batch on axis 0:

    mask     [B, T, d]     example 0: 4 places      example 1: 4 places
    source   [B·2, d], d = 2          4 values                 4 values     axis 0

Places are counted in every call, for the mask is data.

Guarantee: an axis is returned only if each example has exactly as many places as it has values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.rules import Axis, OperatorCall


def masked_scattered(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`masked_scatter` of values of the batch, each example's into its own places."""
    x, mask, source = call.first, call.argument(1, "mask"), call.argument(2, "source")
    if not all(isinstance(value, Tensor) for value in (x, mask, source)):
        return None
    size = call.batch_size
    if call.axis_of(source) != 0 or not out.ndim or out.shape[0] % size or source.numel() % size:
        return None
    return (
        0 if _on_rows(call, x, out) and _on_rows(call, mask, out) and _counts_agree(mask, source, out, size) else None
    )


def _on_rows(call: OperatorCall, value: Tensor, out: Tensor) -> bool:
    """Whether a tensor has its examples where the output has them, or is the same for all."""
    if all(value is not part for part in call.sources):
        return value.ndim < out.ndim or value.shape[0] in (1, out.shape[0])
    return call.axis_of(value) == 0 and value.ndim == out.ndim and value.shape[0] == out.shape[0]


def _counts_agree(mask: Tensor, source: Tensor, out: Tensor, batch_size: int) -> bool:
    places = mask.detach().expand(out.shape).reshape(batch_size, -1).sum(1)
    values: Any = source.numel() // batch_size
    return bool(torch.all(places == values))
