"""Who has which part of a parameter that is split over the processes, and whose noise is in it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hushgrad.parallel.shards import Shards
from hushgrad.parallel.world import World

shapes = st.lists(st.integers(1, 7), min_size=2, max_size=3).map(tuple)


@given(st.lists(shapes, min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 1), st.integers(1, 3))
def test_every_value_of_every_part_has_exactly_one_owner(
    sizes: list[tuple[int, ...]], count: int, dim: int, copies: int
) -> None:
    """Guarantee: the parts of all processes are disjoint, and together they are the whole: of every parameter."""
    totals = [torch.zeros(size) for size in sizes]
    owned = Shards(dim, 0, count).rows_of(totals)
    for place in range(count):
        for copy in range(copies):
            part = Shards(dim, place, count, World(copy, copies)).own_part(owned)
            part += 1
    assert torch.equal(owned, torch.ones_like(owned))


@given(st.lists(shapes, min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 1))
def test_parts_put_together_are_the_whole(sizes: list[tuple[int, ...]], count: int, dim: int) -> None:
    """Guarantee: the parts are those that torch cuts a parameter into, and padding is nobody's."""
    totals = [torch.arange(torch.Size(size).numel(), dtype=torch.float32).reshape(size) for size in sizes]
    rows = Shards(dim, 0, count).rows_of(totals)
    parts = [Shards(dim, place, count).taken_apart(rows[place], totals) for place in range(count)]
    for number, total in enumerate(totals):
        assert torch.equal(torch.cat([part[number] for part in parts], dim), total)
