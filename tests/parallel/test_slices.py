"""Who draws the noise of which value."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hushgrad.parallel.reduction import own_slice
from hushgrad.parallel.world import World


@given(st.integers(0, 1000), st.integers(1, 17))
def test_every_value_has_exactly_one_owner(count: int, processes: int) -> None:
    """Guarantee: the slices of all processes are disjoint, and together they are the whole."""
    owned = torch.zeros(count)
    sizes = []
    for rank in range(processes):
        own = own_slice(World(rank, processes), owned)
        own += 1
        sizes.append(own.numel())
    assert torch.equal(owned, torch.ones(count))
    assert max(sizes) - min(sizes) <= 1
