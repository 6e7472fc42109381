"""Rows added up at places that the batch says: the messages of a graph's edges, a sum over the nodes of each graph.

    torch.zeros_like(h).index_add(0, target, h[source])      h [N, d], source and target [E]: each edge adds to a node
    torch.zeros(B, d).index_add(0, batch, h)                 batch [N]: each node adds to its graph
    torch.bincount(batch, minlength=B)                       [B]: how many nodes each graph has

Each row has an owner, and so has each place. Where they are one, in all rows, the sums at a place are of its owner's
rows alone. A place that no row reaches holds what it held before; of a tensor made anew it belongs to the example in
whose division it lies (`layout.py`), like every other row there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.owners import BatchLocation, SegmentIds, location_of, owners_along
from hushgrad.capture.axes.rules import OperatorCall, dims_of

SOURCES = {"index_add": "source", "index_reduce": "source", "scatter_add": "src", "scatter_reduce": "src"}
"""Operators that add up rows, and what they call them."""

ADDITIONS: dict[Callable[..., Any], str] = {
    getattr(space, name + suffix): source
    for name, source in SOURCES.items()
    for space, suffix in ((torch, ""), (Tensor, ""), (Tensor, "_"))
}
COUNTS: set[Callable[..., Any]] = {torch.bincount, Tensor.bincount}


def added(
    call: OperatorCall, locations: Sequence[BatchLocation], out: Tensor, divisions: Mapping[int, Tensor]
) -> BatchLocation:
    """Return where the batch lies in sums of rows.

    Args:
        call: of one of `ADDITIONS`, or of `COUNTS`.
        locations: where the batch lies in each of the call's data.
        out: the sums.
        divisions: the owner of each row in flat tensors of so many rows.
    """
    found = dict(zip(map(id, call.sources), locations, strict=True))
    if call.func in COUNTS:
        return _counted(call, found, out)
    x, index, rows = call.first, call.argument(2, "index"), call.argument(3, ADDITIONS[call.func])
    dims = dims_of(call.argument(1, "dim"), max(out.ndim, 1))
    if dims is None or len(dims) != 1 or not isinstance(index, Tensor) or not isinstance(rows, Tensor):
        return None
    (dim,) = dims
    own_dim = dim if index.ndim == out.ndim else 0
    owners = owners_along(index, found.get(id(index)), own_dim, call.batch_size)
    if owners is None or (id(rows) in found and not _has(rows, found[id(rows)], dim, call.batch_size, owners)):
        return None
    if id(rows) not in found and isinstance(found[id(index)], SegmentIds) and not _are_alike(rows, dim):
        return None
    owners = owners.reshape([-1 if at == own_dim else 1 for at in range(index.ndim)])
    if id(x) in found:
        places = owners_along(x, found[id(x)], dim, call.batch_size)
        return found[id(x)] if places is not None and _reach_their_own(places, index, owners) else None
    for places in _places_in_new(out, dim, call.batch_size, divisions):
        if _reach_their_own(places, index, owners) and _began_alike(x, out, dim, index):
            return location_of(dim, places, call.batch_size)
    return None


def _counted(call: OperatorCall, found: Mapping[int, BatchLocation], out: Tensor) -> BatchLocation:
    index, weights = call.first, call.argument(1, "weights")
    owners = owners_along(index, found.get(id(index)), 0, call.batch_size)
    if owners is None or out.shape[0] != call.batch_size or not torch.equal(owners, index.long()):
        return None
    if isinstance(weights, Tensor) and id(weights) not in found and isinstance(found[id(index)], SegmentIds):
        return 0 if _are_alike(weights, 0) else None
    if id(weights) in found and not _has(weights, found[id(weights)], 0, call.batch_size, owners):
        return None
    return 0


def _has(rows: Tensor, location: BatchLocation, dim: int, batch_size: int, owners: Tensor) -> bool:
    own = owners_along(rows, location, dim, batch_size)
    return own is not None and torch.equal(own, owners)


def _are_alike(rows: Tensor, dim: int) -> bool:
    """Whether constants are the same for each row: others would be given out by place."""
    return rows.ndim <= dim or bool((rows == rows.narrow(dim, 0, min(1, rows.shape[dim]))).all())


def _places_in_new(out: Tensor, dim: int, batch_size: int, divisions: Mapping[int, Tensor]) -> list[Tensor]:
    size = out.shape[dim]
    found = [torch.arange(batch_size, device=out.device)] if size == batch_size else []
    return [*found, *([divisions[size].to(out.device)] if size in divisions else [])]


def _reach_their_own(places: Tensor, index: Tensor, owners: Tensor) -> bool:
    return bool((places[index.long()] == owners).all())


def _began_alike(x: Any, out: Tensor, dim: int, index: Tensor) -> bool:
    """Whether all places held one value before: other constants would be given out by place.

    Where it was changed in place, those tell that no row has reached.
    """
    if isinstance(x, Tensor) and x is not out:
        return bool((x == x.flatten()[:1]).all())
    reached = torch.zeros(out.shape[dim], dtype=torch.bool, device=out.device)
    reached[index.flatten().long()] = True
    rest = out.detach().movedim(dim, 0)[~reached]
    return not rest.numel() or bool((rest == rest.flatten()[0]).all())


def is_sum_of_rows(func: Any) -> bool:
    """Return whether an operator is one of these."""
    return func in ADDITIONS or func in COUNTS
