"""Sums of rows at places that the batch says: exact where rows and places have one owner, and lost elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.errors import PrivacyUnitError

COUNTS = [2, 1, 3]
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
OWNERS = torch.tensor([0, 0, 1, 2, 2, 2])
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 0, 2, 5, 3, 3]])

Sum = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def pooled(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    return torch.zeros(size, h.shape[1]).index_add(0, owners, h)


def pooled_in_place(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    return h.new_zeros(size, h.shape[1]).scatter_add_(0, owners[:, None].expand_as(h), h)


def averaged(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    places = owners[:, None].expand_as(h)
    return torch.zeros(size, h.shape[1]).scatter_reduce(0, places, h, "mean", include_self=False)


def counted(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    return pooled(h, edges, owners, size) / torch.bincount(owners, minlength=size)[:, None]


def sent(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    return pooled(torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]).tanh(), edges, owners, size)


def sent_anew(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    """Into a tensor made of nothing of the batch; node 4 gets nothing."""
    return pooled(torch.zeros(len(h), h.shape[1]).index_add_(0, edges[1], h[edges[0]]), edges, owners, size)


def returned(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    """The sum of each graph goes back to its nodes."""
    return pooled((h - pooled(h, edges, owners, size)[owners]).tanh(), edges, owners, size)


def split(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    return torch.stack([part.mean(0) for part in h.split(torch.bincount(owners, minlength=size).tolist())])


class Graphs(nn.Module):
    def __init__(self, add: Sum) -> None:
        super().__init__()
        self.body, self.head, self.add = nn.Linear(4, 5), nn.Linear(5, 2), add

    def forward(self, x: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
        return self.head(self.add(self.body(x).relu(), edges, owners, size))


def of_example(example: int) -> tuple[Any, ...]:
    own, start = example == OWNERS, sum(COUNTS[:example])
    return X[own], EDGES[:, own] - start, OWNERS[own] - example, 1


def gradients(model: nn.Module, inputs: tuple[Any, ...], size: int) -> dict[str, Tensor]:
    """Captured gradients, `[size, *shape]` by name."""
    pool = UsePool()
    pool.batch_size = size
    scope = Scope(model, pool)
    try:
        model(*inputs).square().sum().backward()
        return {name: sum(part.per_example() for part in parts) for name, parts in pool.take().items()}  # type: ignore[misc]
    finally:
        scope.detach()


@pytest.mark.parametrize("add", [pooled, pooled_in_place, averaged, counted, sent, sent_anew, returned, split])
def test_sums_of_rows_with_one_owner_give_each_example_its_own_gradient(add: Sum) -> None:
    model = Graphs(add)
    found = gradients(model, (X, EDGES, OWNERS, 3), 3)
    for example in range(3):
        own, edges, owners, size = of_example(example)
        loss = model(own, edges, owners, size).square().sum()
        alone = torch.autograd.grad(loss, list(model.parameters()))
        for (name, _), gradient in zip(model.named_parameters(), alone, strict=True):
            torch.testing.assert_close(found[name][example].reshape(gradient.shape), gradient)


def to_the_next_graph(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    return pooled(h, edges, (owners + 1) % size, size)


def to_the_next_node(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    return pooled(torch.zeros_like(h).index_add(0, (edges[1] + 1) % len(h), h[edges[0]]), edges, owners, size)


def from_the_next_node(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    return pooled(h[(edges[0] + 1) % len(h)], edges, owners, size)


def onto_other_constants(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    rows = torch.arange(float(len(h)))[:, None].expand_as(h).contiguous()
    return pooled(rows.index_add(0, edges[1], h[edges[0]]), edges, owners, size)


def counted_for_others(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    return pooled(h, edges, owners, size) / (1 + torch.bincount(owners.flip(0), minlength=size))[:, None]


def by_place(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    """A constant for each row, by its number."""
    return (
        pooled(h, edges, owners, size) * torch.zeros(size).index_add(0, owners, torch.arange(len(h)).float())[:, None]
    )


def by_place_weighed(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    return pooled(h, edges, owners, size) * torch.bincount(owners, torch.arange(len(h)).float(), size)[:, None]


def last_overwritten(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    h = h.clone()
    h[-1:] = 0.0
    return pooled(h, edges, owners, size)


def of_all(h: Tensor, edges: Tensor, owners: Tensor, size: int) -> Tensor:
    return pooled(h, edges, owners, size) - torch.zeros(1, h.shape[1]).index_add(0, owners * 0, h)


LOST = [to_the_next_graph, to_the_next_node, from_the_next_node, onto_other_constants, counted_for_others, of_all]
LOST += [by_place, by_place_weighed, last_overwritten]


@pytest.mark.parametrize("add", LOST)
def test_sums_over_rows_of_others_are_refused(add: Sum) -> None:
    with pytest.raises(PrivacyUnitError, match="cannot be told apart"):
        gradients(Graphs(add), (X, EDGES, OWNERS, 3), 3)
