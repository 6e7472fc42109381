"""One draw, shared out to several processes: a partition, in equally many items everywhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hushgrad.randomness import KeyStream
from hushgrad.sampling.poisson import PoissonSampler
from hushgrad.sampling.records import Cutting, Share, cut

draws = st.lists(st.integers(0, 10_000), unique=True, max_size=70).map(lambda found: tuple(sorted(found)))


@given(draws, st.integers(1, 9), st.one_of(st.none(), st.integers(1, 12)), st.booleans())
def test_shares_partition_a_draw_in_equally_many_items(
    drawn: tuple[int, ...], processes: int, rows: int | None, constant: bool
) -> None:
    """Guarantee: the shares of all processes partition the logical batch, in equally many items."""
    cutting = Cutting(rows, constant and rows is not None)
    shares = [cut(drawn, cutting, 3, 1, Share(rank, processes)) for rank in range(processes)]
    assert len({len(items) for items in shares}) == 1
    indices = [index for items in shares for item in items for index in item.indices]
    assert sorted(indices) == list(drawn)
    for items in shares:
        assert items[0].first
        assert [item.last for item in items] == [*[False] * (len(items) - 1), True]
        assert all(item.weight == (1.0 if item.indices else 0.0) for item in items)
        assert all(len(item.indices) <= item.size <= (rows or len(drawn) or 1) for item in items)
    sizes = [sum(len(item.indices) for item in items) for items in shares]
    assert max(sizes) - min(sizes) <= 1


@given(draws, st.one_of(st.none(), st.integers(1, 12)))
def test_of_one_process_the_share_is_the_whole(drawn: tuple[int, ...], rows: int | None) -> None:
    assert cut(drawn, Cutting(rows), 0, 0) == cut(drawn, Cutting(rows), 0, 0, Share(0, 1))


@given(st.integers(0, 2**31), st.integers(1, 8), st.floats(0.01, 0.9))
def test_the_union_of_all_shares_is_the_draw_of_one_process(seed: int, processes: int, rate: float) -> None:
    """The union under a key is the one Poisson draw under that key, whatever the number of processes."""
    sampler = PoissonSampler(50, rate, KeyStream.fixed_for_tests(seed))
    drawn = tuple(sampler.draw(0).tolist())
    shares = [cut(drawn, Cutting(4), 0, 0, Share(rank, processes)) for rank in range(processes)]
    assert {index for items in shares for item in items for index in item.indices} == set(drawn)
