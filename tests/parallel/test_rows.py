"""What a row of processes releases is what it has measured: its own parts, and the owner's of what all have whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hushgrad.clipping.bound import BoundRule
from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.placement import Put
from hushgrad.gradients.rows import Rows
from hushgrad.parallel.grid import Grid
from hushgrad.parallel.rows import bytes_of_sums, owners_of
from hushgrad.parallel.world import World

C, B = 1.0, 5


def grid(place: int, count: int) -> Grid:
    return Grid(World(place, count), World(), World(place, count), "row")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 5))
def test_each_parameter_that_a_row_has_whole_has_one_owner_in_it_and_all_agree(sizes: list[int], count: int) -> None:
    """Guarantee: every process names the same owners, and none has more than another by more than a parameter."""
    parameters = {f"p{place}": torch.zeros(size) for place, size in enumerate(sizes)}
    first, *others = [owners_of(parameters, grid(place, count)) for place in range(count)]
    assert all(other == first for other in others)
    if count == 1:
        assert set(first.values()) == {None}
        return
    loads = [sum(p.numel() for name, p in parameters.items() if first[name] == place) for place in range(count)]
    assert sum(loads) == sum(sizes)
    assert max(loads) - min(loads) <= max(sizes)
    assert [bytes_of_sums(parameters, first, grid(place, count)) for place in range(count)] == [4 * n for n in loads]


@dataclass
class Told:
    """A row in one process: each of its members runs after the other, until all squares are known."""

    place: int
    owners: dict[str, int | None]
    known: list[Tensor] = field(default_factory=list)
    heard: Sequence[Tensor] = ()

    def has(self, name: str) -> bool:
        return self.owners[name] in (None, self.place)

    def added(self, squares: Tensor) -> Tensor:
        self.known.append(squares)
        return torch.stack([*self.heard]).sum(0) if self.heard else squares

    def least(self, number: int) -> int:
        return number


@pytest.mark.parametrize("scale", [1.0, 1e25])
@pytest.mark.parametrize("are_equal", [True, False])
def test_what_is_released_of_an_example_has_the_norm_that_was_measured(are_equal: bool, scale: float) -> None:
    """Guarantee: each part of an example's gradient is counted once. Also where processes have other gradients of what
    they all have whole, and where float32 overflows.
    """
    torch.manual_seed(0)
    owners: dict[str, int | None] = {"cut": None, "first": 0, "second": 1}
    shapes = {"cut": (4,), "first": (3,), "second": (2, 2)}
    common = {name: scale * torch.randn(B, *shape) for name, shape in shapes.items()}
    parts = [
        {
            name: common[name] if are_equal and name != "cut" else scale * torch.randn(B, *shape)
            for name, shape in shapes.items()
        }
        for _ in range(2)
    ]
    for example in range(B):
        drop = torch.arange(B) != example
        rows = [{name: value.masked_fill(_like(drop, value), 0) for name, value in part.items()} for part in parts]
        own = torch.cat([rows[0]["cut"], rows[1]["cut"], rows[0]["first"], rows[1]["second"].flatten(1)], 1)[example]
        wanted = own.double() / own.double().norm().clamp(min=C)
        first = [_sums(place, owners, row, []) for place, row in enumerate(rows)]
        heard = [told.known for _, told in first]
        found = [_sums(place, owners, row, heard)[0] for place, row in enumerate(rows)]
        assert [set(sums) for sums in found] == [{"cut", "first"}, {"cut", "second"}]
        released = torch.cat([found[0]["cut"], found[1]["cut"], found[0]["first"], found[1]["second"].flatten()])
        assert torch.allclose(released.double(), wanted, rtol=1e-5, atol=1e-7)
        assert released.double().norm() <= C * (1 + 1e-5)


def _like(drop: Tensor, value: Tensor) -> Tensor:
    return drop.reshape(-1, *[1] * (value.ndim - 1))


def _sums(
    place: int, owners: dict[str, int | None], row: dict[str, Tensor], heard: list[list[Tensor]]
) -> tuple[dict[str, Tensor], Told]:
    told = Told(place, owners)
    bound = BoundRule(FlatClipping(C), owners)
    calls = iter(zip(*heard, strict=True)) if heard else None
    add = told.added

    def added(squares: Tensor) -> Tensor:
        told.heard = next(calls) if calls is not None else ()
        return add(squares)

    told.added = added  # type: ignore[method-assign]
    uses = {name: [Dense(value.clone())] for name, value in row.items()}
    return clipped_sums(uses, clip=bound, across=told), told  # type: ignore[arg-type]


class Cut(Put):
    """A table of which one of some processes has its rows; operands are whole."""

    def __init__(self, place: int, count: int) -> None:
        self._place, self._count = place, count

    def __call__(self, operand: Tensor, dims: object) -> Tensor:
        return operand

    def rows(self, count: int) -> tuple[int, int]:
        size = -(-count // self._count)
        first = min(self._place * size, count)
        return first, min(size, count - first)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_parts_of_a_table_hold_what_was_looked_up_there_and_together_all_of_it(
    words: int, processes: int, seed: int
) -> None:
    """Guarantee: each row's gradient is in the part of one process, also of a table with fewer rows than processes."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, words, (B, 4), generator=generator)
    rows = Rows(ids, torch.randn(B, 4, 3, generator=generator), words)
    parts = [rows.in_row(Cut(place, processes)).per_example() for place in range(processes)]
    assert torch.equal(torch.cat(parts, 1), rows.per_example())
