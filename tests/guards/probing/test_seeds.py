"""A forward that seeds a generator is told, and one that only draws is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hushgrad.guards.probing.seeds import seeds_left
from hushgrad.guards.probing.state import forked_randomness


def left(act: Callable[[], Any]) -> tuple[Any, ...]:
    with forked_randomness([], 3):
        act()
        return seeds_left([], 3)


@pytest.mark.parametrize(
    "draw", [lambda: None, lambda: torch.rand(5000), lambda: [random.random() for _ in range(5000)],
             lambda: np.random.rand(5000), lambda: random.shuffle(list(range(2000)))]
)  # fmt: skip
def test_drawing_is_no_seeding(draw: Callable[[], Any]) -> None:
    assert not any(left(draw))


@pytest.mark.parametrize("seed", [torch.manual_seed, random.seed, np.random.seed])
def test_other_seeds_are_told_apart_and_equal_ones_are_not(seed: Callable[[int], Any]) -> None:
    one = left(lambda: seed(11))
    assert any(value is not None for value in one)
    assert one == left(lambda: (seed(11), torch.rand(3)))
    assert one != left(lambda: seed(12))
