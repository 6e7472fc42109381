"""Random allocation: every record in exactly so many random steps of each pass. Keys are fixed."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

from hushgrad.errors import DuplicateRecordError, InvalidArgumentError
from hushgrad.randomness import KeyStream
from hushgrad.sampling import BallsInBinsSampling, PrivateLoader
from hushgrad.sampling.records import Share


def passes(scheme: BallsInBinsSampling, population: int, count: int, key: int = 5) -> list[list[tuple[int, ...]]]:
    sampler = scheme.sampler(population, KeyStream.fixed_for_tests(key))
    return [list(sampler.one_pass(scheme.bins, number * scheme.bins)) for number in range(count)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.data(), st.integers(1, 40), st.integers(0, 2**30))
def test_every_record_is_in_exactly_so_many_steps(bins: int, data: st.DataObject, population: int, key: int) -> None:
    """Guarantee: in a pass every record is in exactly `participations` different steps."""
    times = data.draw(st.integers(1, bins))
    for steps in passes(BallsInBinsSampling(bins, times), population, 2, key):
        assert len(steps) == bins
        assert all(list(step) == sorted(set(step)) for step in steps)
        assert np.bincount(np.concatenate([np.array(step, int) for step in steps]), minlength=population).tolist() == (
            [times] * population
        )


@pytest.mark.parametrize(("bins", "times"), [(5, 1), (4, 2), (5, 4)])
def test_all_sets_of_steps_are_equally_likely(bins: int, times: int) -> None:
    """Guarantee: all sets of so many steps are equally likely. False alarm 1e-6 each (chi-square, 40,000 records)."""
    (steps,) = passes(BallsInBinsSampling(bins, times), 40_000, 1)
    of_record: dict[int, tuple[int, ...]] = {}
    for number, step in enumerate(steps):
        for record in step:
            of_record[record] = (*of_record.get(record, ()), number)
    sets = dict.fromkeys(combinations(range(bins), times), 0)
    for taken in of_record.values():
        sets[taken] += 1
    assert stats.chisquare(list(sets.values())).pvalue > 1e-6


def test_records_and_passes_are_independent() -> None:
    """Guarantee: independently for each record and each pass. False alarm 4e-6 (four binomial counts)."""
    one, other = passes(BallsInBinsSampling(7), 30_000, 2)

    def steps_of(steps: list[tuple[int, ...]]) -> np.ndarray:
        found = np.zeros(30_000, int)
        for number, step in enumerate(steps):
            found[list(step)] = number
        return found

    first, second = steps_of(one), steps_of(other)
    for left, right in ((first, second), (first[:-1:2], first[1::2]), (first[:15_000], first[15_000:])):
        common = int((left == right).sum())
        assert stats.binomtest(common, len(left), 1 / 7).pvalue > 1e-6
    sizes = [len(step) for step in one]
    assert stats.chisquare(sizes).pvalue > 1e-6
    assert len(set(sizes)) > 1  # batches of one size are no random allocation


def test_a_pass_that_is_broken_off_is_followed_by_another_allocation() -> None:
    data = TensorDataset(torch.arange(60))
    loader = PrivateLoader(data, BallsInBinsSampling(6), steps_per_pass=6, stream=KeyStream.fixed_for_tests(3))
    first = [tuple(item[0].tolist()) for _, item in zip(range(2), loader, strict=False)]
    second = [tuple(item[0].tolist()) for item in loader]
    third = [tuple(item[0].tolist()) for item in loader]
    assert len(second) == len(third) == 6
    assert first[0] not in second
    assert not set(second) & set(third)


def test_a_loader_takes_as_many_batches_as_there_are_bins() -> None:
    data = TensorDataset(torch.arange(100))
    loader = PrivateLoader.from_data_loader(
        DataLoader(data, batch_size=16, shuffle=True), BallsInBinsSampling(7), stream=KeyStream.fixed_for_tests(1)
    )
    assert len(loader) == 7
    assert loader.batch_size == 100 / 7
    assert sorted(int(x) for (item,) in loader for x in item) == list(range(100))
    with pytest.raises(InvalidArgumentError, match=r"8 steps.*7 batches"):
        PrivateLoader.from_data_loader(
            DataLoader(data, batch_size=16), BallsInBinsSampling(8), stream=KeyStream.fixed_for_tests(1)
        )
    with pytest.raises(InvalidArgumentError, match="5 steps"):
        PrivateLoader(data, BallsInBinsSampling(5), steps_per_pass=4, stream=KeyStream.fixed_for_tests(1))


def test_empty_batches_are_items_of_weight_zero_and_large_ones_are_cut() -> None:
    seen = []

    class Observer:
        def before_draw(self) -> None: ...
        def begin(self, batch, item) -> None:  # type: ignore[no-untyped-def]
            seen.append(batch)

        def lost(self, batch) -> None: ...  # type: ignore[no-untyped-def]

    data = TensorDataset(torch.arange(6))
    loader = PrivateLoader(
        data,
        BallsInBinsSampling(12),
        steps_per_pass=12,
        stream=KeyStream.fixed_for_tests(2),
        max_physical_batch_size=1,
        observer=Observer(),
    )
    list(loader)
    assert sum(batch.weight for batch in seen) == 6
    assert sum(batch.last for batch in seen) == 12
    assert any(batch.weight == 0 for batch in seen)


def test_the_shares_of_two_processes_are_those_of_one_draw() -> None:
    """Every process draws the whole allocation from the shared key, and takes its part of each step."""
    data = TensorDataset(torch.arange(50))

    def steps(share: Share) -> list[list[int]]:
        stream = KeyStream.fixed_for_tests(4)
        observed: list[list[int]] = []

        class Observer:
            def before_draw(self) -> None: ...
            def begin(self, batch, item) -> None:  # type: ignore[no-untyped-def]
                observed.append(list(batch.indices))

            def lost(self, batch) -> None: ...  # type: ignore[no-untyped-def]

        scheme = BallsInBinsSampling(5, 2)
        list(PrivateLoader(data, scheme, steps_per_pass=5, stream=stream, share=share, observer=Observer()))
        return observed

    whole, one, other = steps(Share()), steps(Share(0, 2)), steps(Share(1, 2))
    assert [sorted(a + b) for a, b in zip(one, other, strict=True)] == whole


def test_a_record_that_comes_too_often_is_refused_before_it_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from hushgrad.sampling.balls_in_bins import BallsInBinsSampler

    monkeypatch.setattr(BallsInBinsSampler, "one_pass", lambda self, steps, first: iter([(0, 1), (0, 1), (0, 2), (3,)]))
    for times, most in ((1, 1), (2, 2)):
        loader = PrivateLoader(
            TensorDataset(torch.arange(9)),
            BallsInBinsSampling(4, times),
            steps_per_pass=4,
            stream=KeyStream.fixed_for_tests(2),
        )
        items = iter(loader)
        for _ in range(most):
            next(items)
        with pytest.raises(DuplicateRecordError, match="twice" if times == 1 else "more than 2 times"):
            next(items)


@pytest.mark.parametrize("values", [(0,), (3, 0), (3, 4), (2.5,)])
def test_values_out_of_range_are_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgumentError):
        BallsInBinsSampling(*values)


def test_a_part_of_a_pass_is_not_drawn() -> None:
    with pytest.raises(InvalidArgumentError, match="whole passes"):
        next(BallsInBinsSampling(5).sampler(10, KeyStream.fixed_for_tests(1)).one_pass(3, 0))


def test_the_scheme_says_of_itself_what_others_ask() -> None:
    scheme = BallsInBinsSampling(8, 2)
    assert scheme.allocation == (8, 2)
    assert scheme.expected_batch_size(100) == 25
    assert scheme.inclusion_probability(100) == 0.25
    assert scheme.adjacency == "add/remove-one"
    assert "2 random steps of the 8" in scheme.describe()
