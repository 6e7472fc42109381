"""Cyclic Poisson sampling: groups, turns, rates, and what the loader refuses."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from scipy import stats

from hushgrad.accounting import CyclicPoisson
from hushgrad.errors import DuplicateRecordError, InvalidArgumentError
from hushgrad.randomness import KeyStream
from hushgrad.sampling import CyclicPoissonSampling, PrivateLoader
from hushgrad.sampling.cyclic import CyclicSampler


def drawn(count: int, rate: float, cycle: int, steps: int, seed: int = 3) -> list[np.ndarray]:
    sampler = CyclicSampler(count, rate, cycle, KeyStream.fixed_for_tests(seed))
    return [sampler.draw(step) for step in range(steps)]


def test_the_groups_are_a_partition_and_each_is_drawn_in_its_turn() -> None:
    """Guarantee: every record is in exactly one group."""
    places = defaultdict(set)
    for step, indices in enumerate(drawn(500, 1.0, 7, 21)):
        for index in indices:
            places[int(index)].add(step % 7)
    assert sorted(places) == list(range(500))
    assert all(len(found) == 1 for found in places.values())


def test_no_record_takes_part_in_two_of_as_many_steps_as_there_are_groups() -> None:
    last: dict[int, int] = {}
    for step, indices in enumerate(drawn(300, 0.8, 5, 60)):
        for index in indices.tolist():
            assert step - last.get(index, -5) >= 5
            last[index] = step


@pytest.mark.statistical
def test_groups_are_uniform_and_turns_have_the_rate() -> None:
    """Guarantee: given the groups, a draw is one of `PoissonSampler` over the group whose turn it is.

    False-alarm probability 1e-9 each: chi-square of the groups, binomial of the draws; fixed key.
    """
    first = drawn(20_000, 1.0, 8, 8)
    assert stats.chisquare([len(indices) for indices in first]).pvalue > 1e-9
    taken = sum(len(indices) for indices in drawn(20_000, 0.3, 8, 80))
    expected = 20_000 * 10 * 0.3
    assert abs(taken - expected) < 6.2 * np.sqrt(expected * 0.7)


@pytest.mark.statistical
def test_records_of_a_group_are_drawn_independently_of_each_other() -> None:
    """Two records come together in a quarter of their turns, within 6 standard errors (below 1e-8); fixed key."""
    together = sum(len(indices) == 2 for indices in drawn(2, 0.5, 1, 4000, seed=8))
    assert abs(together - 1000) < 6 * np.sqrt(4000 * 3 / 16)


def test_more_groups_than_records_leave_empty_draws() -> None:
    sizes = [len(indices) for indices in drawn(3, 1.0, 10, 10)]
    assert sum(sizes) == 3
    assert 0 in sizes


def test_a_step_costs_its_turn() -> None:
    scheme = CyclicPoissonSampling(0.01, 16)
    assert scheme.event(1.5, 2) == CyclicPoisson(0.16, 1.5, 16, 2)
    assert scheme.expected_batch_size(1000) == 10
    assert scheme.min_separation == 16


@pytest.mark.parametrize(("rate", "cycle"), [(0.1, 11), (0.5, 3), (0.0, 2), (0.1, 0)])
def test_a_group_that_would_be_drawn_more_than_certainly_is_refused(rate: float, cycle: int) -> None:
    with pytest.raises(InvalidArgumentError):
        CyclicPoissonSampling(rate, cycle)


@pytest.mark.parametrize(("batch", "count"), [(64, 8000), (3, 21), (7, 49), (1, 3)])
def test_rounding_of_a_rate_of_one_is_no_excess(batch: int, count: int) -> None:
    assert CyclicPoissonSampling(batch / count, count // batch).turn_rate == pytest.approx(1.0)


class _TooSoon(CyclicPoissonSampling):
    """Says that its records stay apart, and draws as plain Poisson sampling does: every record in every step."""

    def sampler(self, population: int, stream: KeyStream, batches: object = None) -> CyclicSampler:
        return CyclicSampler(population, 1.0, 1, stream)


def test_a_sampler_whose_records_come_back_sooner_is_refused_before_they_are_handed_out() -> None:
    loader = PrivateLoader(
        range(20), _TooSoon(0.25, 4), steps_per_pass=4, stream=KeyStream.fixed_for_tests(1), batch_size=5
    )
    items = iter(loader)
    next(items)
    with pytest.raises(DuplicateRecordError, match="less than 4 steps"):
        next(items)


def test_groups_stay_over_passes_and_a_pass_that_is_broken_off_leaves_a_gap() -> None:
    seen: list[int] = []

    class Steps:
        def before_draw(self) -> None: ...
        def lost(self, batch: object) -> None: ...
        def begin(self, batch, item) -> None:  # type: ignore[no-untyped-def]
            seen.append(batch.step)

    loader = PrivateLoader(
        range(40),
        CyclicPoissonSampling(0.25, 4),
        steps_per_pass=6,
        stream=KeyStream.fixed_for_tests(1),
        observer=Steps(),
    )
    list(loader)
    items = iter(loader)
    next(items), next(items)
    list(loader)
    assert seen[:8] == list(range(8))
    assert seen[8] == 9
    assert len(seen) == 14
