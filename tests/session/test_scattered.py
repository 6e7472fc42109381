"""Sums of which each process keeps its own part; processes are threads here, those of tests/parallel are real."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hushgrad.session.draws as draws
import hushgrad.session.scattered as scattered
from hushgrad.errors import DesyncError
from hushgrad.parallel.grid import Grid
from hushgrad.parallel.shards import Shards
from hushgrad.parallel.world import ALONE, World
from hushgrad.session.scattered import ScatteredSums

W = 3
SHAPES = {"matrix": (7, 4), "wide": (5, 6), "bias": (4,), "other": (2,)}
ALL_HAVE: dict[str, int | None] = dict.fromkeys(SHAPES)
Take = Callable[[str], Tensor | None]


class Gang:
    """As many processes as parts, each of them a thread with sums of its own; `of` tells what one gives for an item."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        copies: World,
        row: World = ALONE,
        owners: dict[str, int | None] = ALL_HAVE,
    ) -> None:
        self._rows: dict[int, Tensor] = {}
        self._barrier = threading.Barrier(W, timeout=20)
        self._place = threading.local()
        gang = self

        class Scattering:
            def __init__(self, split: Shards, rows: Tensor) -> None:
                gang._rows[split.place] = rows
                gang._barrier.wait()
                self.own = torch.stack([gang._rows[place][split.place] for place in range(W)]).sum(0)
                gang._barrier.wait()

            def wait(self) -> None:
                """It has come."""

        monkeypatch.setattr(scattered, "Scattering", Scattering)
        monkeypatch.setattr(scattered, "exchanged", lambda *_, **__: [])
        monkeypatch.setattr(scattered, "device_of", lambda _: torch.device("cpu"))
        monkeypatch.setattr(scattered, "shape_in_row", lambda parameter, _: parameter.shape)
        monkeypatch.setattr(Shards, "of", lambda *_: Shards(0, self._place.number, W, copies))
        monkeypatch.setattr(draws, "SMALL_VALUES", 20)  # two draws of one parameter, and one of two
        parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
        self.sums = []
        for place in range(W):
            self._place.number = place
            grid = Grid(World(place, W), World(place, W), row)
            self.sums.append(ScatteredSums(parameters, owners, grid))

    def add(self, takes: list[Take]) -> list[Exception | None]:
        """Add one item in all of them; returns what each raised."""

        def run(place: int) -> Exception | None:
            try:
                self.sums[place].add(takes[place])
            except ArithmeticError as error:
                return error
            return None

        with ThreadPoolExecutor(W) as pool:
            return list(pool.map(run, range(W)))

    def whole(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([own[name] for own in parts]) for name in SHAPES}


def sums_of_an_item() -> dict[str, Tensor]:
    return {name: torch.randint(-9, 9, shape).float() for name, shape in SHAPES.items()}


def test_parts_of_all_processes_are_the_sum_of_all_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one of them has no example of an item, or has used a part of the parameters."""
    gang = Gang(monkeypatch, World())
    assert len(gang.sums[0].draws) == 3
    wanted = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for item in range(2):
        given: list[dict[str, Tensor]] = [sums_of_an_item(), {} if item else sums_of_an_item(), sums_of_an_item()]
        given[2].pop("bias")
        for own in given:
            for name, total in own.items():
                wanted[name] += total
        assert gang.add([dict(own).get for own in given]) == [None] * W
    found = gang.whole([own.taken_apart([part.own for part in own.take()]) for own in gang.sums])
    assert all(torch.equal(found[name], total) for name, total in wanted.items())
    after = gang.whole([own.taken_apart([part.own for part in own.take()]) for own in gang.sums])
    assert not any(total.any() for total in after.values()), "they are forgotten as they are taken"


@pytest.mark.parametrize("copies", [1, 2])
def test_one_process_alone_adds_noise_to_each_value(monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    """Guarantee: of each value one process alone adds noise to it, once, at the end of the logical batch."""
    owned: dict[str, Tensor] = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for copy in range(copies):
        gang = Gang(monkeypatch, World(copy, copies))
        parts = []
        for own in gang.sums:
            leaving = own.take()
            for total in leaving:
                total.part += 1
            parts.append(own.taken_apart([total.values for total in leaving]))
        for name, total in gang.whole(parts).items():
            owned[name] += total
    assert all(torch.equal(total, torch.ones_like(total)) for total in owned.values())


def test_what_all_of_a_row_have_whole_is_scattered_and_gets_noise_from_its_owner_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owners: dict[str, int | None] = {"matrix": None, "wide": 1, "bias": 0, "other": 1}
    given = [sums_of_an_item() for _ in range(W)]
    for member in range(2):
        gang = Gang(monkeypatch, World(), World(member, 2), owners)
        has = [name for name, owner in owners.items() if owner in (None, member)]
        asked: list[str] = []

        def take(name: str, own: dict[str, Tensor], asked: list[str] = asked) -> Tensor:
            asked.append(name)
            return own[name]

        assert gang.add([partial(take, own=own) for own in given]) == [None] * W
        assert set(asked) == set(has), "others have no sums of it, and hand none over"
        leaving = [own.take() for own in gang.sums]
        parts = [own.taken_apart([t.own for t in of_one]) for own, of_one in zip(gang.sums, leaving, strict=True)]
        for name, total in gang.whole(parts).items():
            wanted = torch.stack([own[name] for own in given]).sum(0) if name in has else torch.zeros_like(total)
            assert torch.equal(total, wanted)
        noised = sum(total.part.numel() for of_one in leaving for total in of_one)
        padded = {"matrix": 9 * 4, "wide": 6 * 6, "bias": 6, "other": 3}
        assert noised == sum(padded[name] for name in has)


def test_a_process_that_cannot_form_a_sum_hands_over_nothing_of_use_and_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gang, given = Gang(monkeypatch, World()), sums_of_an_item()

    def broken(name: str) -> Any:
        if name == "wide":
            raise ArithmeticError("planted")
        return given[name]

    errors = gang.add([given.get, broken, given.get])
    assert [type(error) for error in errors] == [type(None), ArithmeticError, type(None)]
    found = gang.whole([own.taken_apart([part.own for part in own.take()]) for own in gang.sums])
    assert found["wide"].isnan().all()
    for own in gang.sums:
        own.drop()
    assert gang.add([given.get] * W) == [None] * W


@pytest.mark.parametrize("in_order", [True, False])
def test_sums_that_come_one_by_one_are_handed_over_as_soon_as_their_draw_is_whole(
    monkeypatch: pytest.MonkeyPatch, in_order: bool
) -> None:
    """Guarantee: an item whose sums come one by one adds what they add together; some may never come."""
    gang = Gang(monkeypatch, World())
    given = [sums_of_an_item() for _ in range(W)]
    given[1]["bias"] = None  # type: ignore[assignment]
    held: list[list[int]] = [[] for _ in range(W)]

    def run(place: int) -> None:
        own = gang.sums[place]
        own.begin(in_order=in_order)
        for name in ("wide", "other", "bias"):  # "matrix" never comes
            own.give(name, given[place][name])
            held[place].append(len(own._item.given))
        own.end()

    with ThreadPoolExecutor(W) as pool:
        list(pool.map(run, range(W)))
    assert held == [[0, 1, 0] if in_order else [1, 2, 3]] * W
    found = gang.whole([own.taken_apart([part.own for part in own.take()]) for own in gang.sums])
    for name, total in found.items():
        parts = [own[name] for own in given if own[name] is not None and name != "matrix"]
        assert torch.equal(total, torch.stack(parts).sum(0) if parts else torch.zeros_like(total)), name


def test_sums_that_were_handed_over_in_another_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Gang(monkeypatch, World()).sums[0]
    numbers: list[int] = []

    def exchanged(world: World, call: str, number: int) -> list[tuple[int, None]]:
        numbers.append(number)
        return [(number, None), (numbers[0], None)]

    monkeypatch.setattr(scattered, "exchanged", exchanged)
    monkeypatch.setattr(own, "_send", lambda number, rows: own._item.sent.append(number))
    own.end()
    own.begin(in_order=True)
    own.give("wide", torch.ones(SHAPES["wide"]))
    with pytest.raises(DesyncError, match="another order than in other processes"):
        own.end()
