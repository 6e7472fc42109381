"""Sparse tensors made of parameters: captured as the dense tensors they stand for.

`torch.sparse_coo_tensor(indices, values, size)` of a parameter gives a dense derived parameter (`derivation.py`), which
adds to and multiplies with others as the sparse one does. What only sparse tensors have is answered for it here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes import products as products
from hushgrad.capture.operators.linear import matmul
from hushgrad.capture.operators.operator import ForwardContext
from hushgrad.capture.operators.registration import asked_first, captures
from hushgrad.torch_internals import NUMBER_OF_VALUES


@asked_first(Tensor.coalesce)
def coalesce(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a dense stand-in as it is: it has one value at each place."""
    return args[0] if _is_dense_leaf(context, args[0]) else NotImplemented


@asked_first(NUMBER_OF_VALUES)
def number_of_values(
    context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Return how many values of a dense stand-in are not 0."""
    return int(torch.count_nonzero(args[0])) if _is_dense_leaf(context, args[0]) else NotImplemented


@captures(torch.sparse.mm, axis=products.product)
def product(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `torch.sparse.mm(S, x)`."""
    return matmul(context, torch.mm, args, kwargs)


def _is_dense_leaf(context: ForwardContext, value: Any) -> bool:
    return context.leaf(value) is not None and value.layout == torch.strided
