"""Rows end to end as blocks, one for each example, and joined again with some exchanged or left out."""

from __future__ import annotations

import torch
from torch import Tensor

from hushgrad.capture.axes.layout import layout_of
from hushgrad.guards.probing.blocks import blocks_of
from hushgrad.guards.probing.lifting import Lifted, lifted
from hushgrad.guards.probing.rows import Batch

X = torch.arange(15.0).reshape(5, 3)
OWNERS = torch.tensor([0, 0, 1, 1, 1])
EDGES = torch.tensor([[0, 1, 2, 4], [1, 0, 3, 2]])
BOUNDS, STARTS = torch.tensor([0, 2, 5]), torch.tensor([0, 2])


def inputs() -> tuple[tuple[Tensor | int, ...], dict[str, int]]:
    return (X, OWNERS, EDGES, BOUNDS), {"size": 2}


def batch() -> tuple[Lifted, Batch]:
    found = lifted(inputs(), 2, outer=2)
    axes = {(0, place, name): 0 for place in range(4) for name in ("counts", "padded", "targets")}
    return found, Batch(found.value, axes, 2)


def test_blocks_joined_again_are_what_they_were() -> None:
    found, examples = batch()
    (x, owners, edges, bounds), named = found.lowered(examples.same())
    for one, other in zip((x, owners, edges, bounds), (X, OWNERS, EDGES, BOUNDS), strict=True):
        assert one.dtype is other.dtype
        assert torch.equal(one, other)
    assert named == {"size": 2}
    tensors = [(("x",), X), (("at",), STARTS)]
    at = blocks_of(layout_of(tensors, 2), ("at",), STARTS)
    assert at is not None
    assert torch.equal(at.joined(), STARTS)


def test_an_example_is_left_out_in_all_parts_and_in_the_number_of_them() -> None:
    found, examples = batch()
    (x, owners, edges, bounds), named = found.lowered(examples.only([1]))
    assert torch.equal(x, X[2:])
    assert owners.tolist() == [0, 0, 0]
    assert edges.tolist() == [[0, 2], [1, 0]]
    assert bounds.tolist() == [0, 3]
    assert named == {"size": 1}


def test_an_example_is_exchanged_in_all_parts() -> None:
    found, examples = batch()
    (x, owners, edges, bounds), _ = found.lowered(examples.exchanged([0], away=False))
    assert torch.equal(x, torch.cat([X[2:], X[2:]]))
    assert owners.tolist() == [0, 0, 0, 1, 1, 1]
    assert edges.tolist() == [[0, 2, 3, 5], [1, 0, 4, 3]]
    assert bounds.tolist() == [0, 3, 6]
