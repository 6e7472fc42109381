"""`F.embedding`: each example looks up rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hushgrad.capture.axes import products as products
from hushgrad.capture.axes.owners import BatchLocation
from hushgrad.capture.leaves import TrackedTensor
from hushgrad.capture.operators.lookup_options import option_error, refused_options
from hushgrad.capture.operators.operator import ForwardContext, Operator, Recorded, capture
from hushgrad.capture.operators.registration import captures
from hushgrad.capture.uses import UsePool
from hushgrad.gradients.rows import Rows


@dataclass(frozen=True, eq=False)
class Embedding(Operator):
    """A lookup of rows `[num_rows, d]` by integer ids."""

    name: str
    weight: TrackedTensor
    axis: BatchLocation
    padding_idx: int | None

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the rows."""
        ids, weight = inputs
        assert ids is not None
        assert weight is not None
        return F.embedding(ids, weight), (ids,)

    def input_gradients(
        self, saved: tuple[Tensor | None, ...], gradient: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Ids have no gradient."""
        return (None, None)

    def record(self, pool: UsePool, saved: tuple[Tensor | None, ...], gradient: Tensor) -> Recorded:
        """Record which rows were looked up and the gradient of each; padding rows receive none."""
        assert saved[0] is not None
        ids = pool.examples(saved[0], self.axis, self.name)
        gradients = pool.examples(gradient, self.axis, self.name)
        ids_BT = ids.reshape(ids.shape[0], -1).long()
        gradients_BTd = gradients.reshape(*ids_BT.shape, gradients.shape[-1])
        if self.padding_idx is not None:
            gradients_BTd = gradients_BTd.masked_fill((ids_BT == self.padding_idx).unsqueeze(-1), 0)
        return [(self.weight, Rows(ids_BT, gradients_BTd, self.weight.value.shape[0]))]


@captures(F.embedding, axis=products.embedding)
def embedding(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `F.embedding`; options under which one record changes another one's row are refused."""
    ids, weight, padding_idx, options = _arguments(*args, **kwargs)
    leaf = context.leaf(weight)
    if leaf is None:
        return NotImplemented
    where = f"embedding({leaf.name})"
    for option in refused_options(options):
        raise option_error(option, where)
    if not context.axes.descends(ids):
        return NotImplemented
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    operator = Embedding(where, leaf, context.axes.location(ids), padding_idx)
    return capture(operator, context, ids, leaf.value)


def constant_ids(
    context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """Return the ids of a plain lookup in a parameter by ids that are no data, as positions are; else None."""
    if func is not F.embedding:
        return None
    ids, weight, padding_idx, options = _arguments(*args, **kwargs)
    leaf = context.leaf(weight)
    is_plain = padding_idx is None and not any(refused_options(options))
    return ids if is_plain and leaf is not None and leaf.is_parameter and context.leaf(ids) is None else None


def _arguments(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> tuple[Tensor, Tensor, int | None, dict[str, Any]]:
    options = {"sparse": sparse, "max_norm": max_norm, "scale_grad_by_freq": scale_grad_by_freq}
    return input, weight, padding_idx, options
