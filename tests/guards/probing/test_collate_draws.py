"""Numbers begin anew whenever a record is taken; and for every kind of generator there is a state for a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hushgrad.guards.probing.collate_draws import LATER, SEQUENCES, Taken, seeded, sequences
from hushgrad.guards.probing.state_values import write

GENERATORS: list[tuple[Any, Callable[[Any], float]]] = [
    (random.Random(1), lambda g: g.random()),
    (np.random.default_rng(1), lambda g: g.random()),
    (np.random.Generator(np.random.MT19937(1)), lambda g: g.random()),
    (np.random.RandomState(1), lambda g: g.random_sample()),
    (torch.Generator().manual_seed(1), lambda g: float(torch.rand((), generator=g))),
]


@pytest.mark.parametrize(("generator", "draw"), GENERATORS, ids=[type(g).__name__ for g, _ in GENERATORS])
def test_a_generator_of_any_kind_begins_where_its_seed_says_and_is_left_alone(generator: Any, draw: Any) -> None:
    first, other = seeded(generator, 3), seeded(generator, 4)
    drawn = []
    for state in (first, first, other):
        draw(generator)
        write(generator, state)
        drawn.append(draw(generator))
    assert drawn[0] == drawn[1] != drawn[2]


def test_each_record_that_is_taken_finds_the_same_numbers_in_whatever_way_it_is_taken() -> None:
    numbers = random.Random()
    records = Taken(range(4), lambda: numbers.seed(1))
    (first,) = {numbers.random() for _ in records}
    assert numbers.random() == first  # after a loop, too
    assert {numbers.random() for _ in reversed(records)} == {first}
    assert [(records[place], numbers.random()) for place in (2, -1)] == [(2, first), (3, first)]
    assert [numbers.random() for _ in records[1:]] == [first] * 3
    assert sorted(records, reverse=True) == [3, 2, 1, 0]
    assert numbers.random() == first
    assert records.copy().pop() == 3
    assert numbers.random() == first
    assert list(records) == [0, 1, 2, 3]


def test_examinations_draw_other_numbers_each_time() -> None:
    first, second, third = (list(sequences(turn)) for turn in range(3))
    assert (len(first), len(second), len(third)) == (SEQUENCES, LATER, LATER)
    assert len({*first, *second, *third}) == SEQUENCES + 2 * LATER
